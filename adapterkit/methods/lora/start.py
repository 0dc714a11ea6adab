"""How a LoRA adapter starts, by ``init_lora_weights``.

Where the product of the two factors is not zero at the start, the adapter takes it away again, so that it starts as the
base model and the frozen weight stays as it is. What it started with is computed anew from the weight when a file is
loaded, or, where data was needed for it, is part of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError
from adapterkit.methods.lora import init, minor
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.methods.lora.starts import LoftQConfig
from adapterkit.nn import storage

EIGENS, GRADIENT = "eigens", "loraga_gradient"
"""Attributes of a frozen layer under which what was learnt of the data waits for its adapter."""


def begin(adapter: Any, config: LoraConfig) -> None:
    """Fill the factors of a new adapter."""
    scheme = config.init_lora_weights
    if not (isinstance(scheme, bool) and adapter.factors()[0].is_meta):  # the usual case of loading
        _fill(adapter, config)


@torch.no_grad()
def _fill(adapter: Any, config: LoraConfig) -> None:
    scheme, (a, b) = config.init_lora_weights, adapter.factors()
    if init.needs_weight(scheme):
        _from_weight(adapter, str(scheme))
    elif scheme == minor.SCHEME:
        minor.fill(adapter)
    elif scheme == "loftq":
        _loftq(adapter, config)
    elif init.needs_data(scheme):
        _await_data(adapter, config)
    elif a.is_meta:
        return
    elif adapter.layer.kind == "embedding" and scheme is not False:  # rows of A are looked up: they start at zero
        nn.init.zeros_(a)
        nn.init.normal_(b)
    else:
        init.start(a, b, scheme, adapter.r)


def _linear(adapter: Any, scheme: Any) -> None:
    if adapter.layer.kind != "linear":
        what = getattr(adapter.layer, "name", type(adapter.layer.layer).__name__)
        raise CapabilityError(f"init_lora_weights={scheme!r} is for linear layers only, and {what} is none")


def _from_weight(adapter: Any, scheme: str) -> None:
    """On the meta device, too, where the base's weight counts: the product that is subtracted comes from it."""
    _linear(adapter, scheme)
    weight = adapter.layer.weight
    if not weight.is_meta:
        start_at(adapter, *init.from_weight(scheme, weight.cpu(), adapter.r, adapter.scaling))


def _loftq(adapter: Any, config: LoraConfig) -> None:
    """The factors hold what quantisation loses; beside them the adapter takes the base to its quantised weight."""
    _linear(adapter, "loftq")
    if storage.is_quantised(adapter.layer.layer):
        raise CapabilityError(
            "init_lora_weights='loftq' needs the weight before it is quantised; on a quantised base, make the adapter "
            "with init_lora_weights=true and call replace_lora_weights_loftq"
        )
    weight, settings = adapter.layer.weight, config.loftq_config or LoftQConfig()
    if weight.is_meta:
        return
    rounded, a, b = init.loftq(weight.float(), adapter.r, bits=settings.loftq_bits, rounds=settings.loftq_iter)
    root = adapter.scaling**0.5
    start_at(adapter, a / root, b / root)
    change = (weight - rounded) / adapter.scaling  # the base's weight less the quantised one, as a product with 1
    adapter.start_A, adapter.start_B = change, torch.eye(len(change), device=change.device)


def _await_data(adapter: Any, config: LoraConfig) -> None:
    """A usual start for now; what comes of the data may be there already."""
    scheme = str(config.init_lora_weights)
    _linear(adapter, scheme)
    a, b = adapter.factors()
    adapter.settle(awaits_data=scheme)
    if not a.is_meta:
        init.start(a, b, True, adapter.r)
    if scheme == "eva":
        return
    for name, factor in (("start_A", a), ("start_B", b)):
        adapter.register_buffer(name, torch.zeros_like(factor))
    from_data(adapter, config)


def from_data(adapter: Any, config: LoraConfig) -> None:
    """Start from what was learnt of the data at this layer, if anything was."""
    layer, a = adapter.layer.layer, adapter.factors()[0]
    if a.is_meta:
        return
    if config.init_lora_weights == "corda" and hasattr(layer, EIGENS):
        start_at(adapter, *init.from_eigens(getattr(layer, EIGENS), adapter.scaling), saved=True)
    elif config.init_lora_weights == "lora_ga" and hasattr(layer, GRADIENT):
        gradient, weight = getattr(layer, GRADIENT), adapter.layer.weight
        start_at(adapter, *init.from_gradient(gradient, weight, adapter, config.lora_ga_config), saved=True)


def from_learnt(model: Any, adapter_name: str, layers: Mapping[str, nn.Module]) -> None:
    """Start an adapter of a run from what was just learnt at its frozen layers, and take that away: the next adapter on
    this base may have another rank."""
    config, adapted = model.peft_config[adapter_name], model.base_model.layers
    for target, layer in layers.items():
        from_data(adapted[target].adapters[adapter_name], config.at(target))
        for learnt in (EIGENS, GRADIENT):
            layer.__dict__.pop(learnt, None)


@torch.no_grad()
def start_at(adapter: Any, a: Tensor, b: Tensor, *, saved: bool = False) -> None:
    """Give the factors values whose product is the adapter's origin.

    Args:
        adapter: the adapter.
        a: ``(r, in_features)``.
        b: ``(out_features, r)``.
        saved: whether the origin is part of the adapter's file.

    Raises:
        CapabilityError: the weight has fewer directions than the rank.
    """
    own_a, own_b = adapter.factors()
    if a.shape != own_a.shape:
        shape = tuple(adapter.layer.weight_shape)
        raise CapabilityError(
            f"init_lora_weights takes r={len(own_a)} directions of the weight; one of {shape} has {len(a)}: give it a "
            "smaller r, in rank_pattern"
        )
    adapter.register_buffer("start_A", a, persistent=saved)
    adapter.register_buffer("start_B", b, persistent=saved)
    adapter.settle()
    if not own_a.is_meta:
        own_a.copy_(a)
        own_b.copy_(b)
