"""What state each adapter is in, layer by layer and for the model as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from adapterkit.errors import CapabilityError
from adapterkit.injection.lookup import tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.nn import storage
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer

Irregular = Literal["irregular"]
"""Stands where layers or parameters do not agree."""


@dataclass
class TunerLayerStatus:
    """The state of one adapted layer."""

    name: str
    """The layer's name, ``"model.encoder.layer.0.attention.self.query"``."""
    module_type: str
    """Method and class of the layer, ``"lora.Linear"``."""
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    """By adapter: whether its parameters here receive gradients."""
    available_adapters: list[str]
    devices: dict[str, list[str]]
    """By adapter: the types of device its parameters here are on."""
    quantization_backend: str | None
    """``"bnb 4bit"``, ``"bnb 8bit"``, ``"torchao"``, ..., or None."""


@dataclass
class TunerModelStatus:
    """The state of all adapters of a model."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | Irregular | None


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The state of every adapted layer and of every module that is saved whole.

    Args:
        model: a `PeftModel`, or a plain model with injected adapters.

    Raises:
        CapabilityError: nothing in the model is adapted: a plain model, or prompts only.
    """
    tuner = tuner_of(model)
    prefix = "" if model is tuner.model else "model."
    modules: dict[str, Any] = {**tuner.layers, **tuner.copies}
    if not modules:
        raise CapabilityError(f"no layer of this {type(model).__name__} has an adapter")
    return [_layer_status(prefix + name, modules[name]) for name in tuner.names if name in modules]


def _layer_status(name: str, module: AdaptedLayer | CopiedLayer) -> TunerLayerStatus:
    parts = _parts(module)
    selection, layer = module.selection, _frozen(module)
    here = sorted(parts)
    return TunerLayerStatus(
        name=name,
        module_type=f"{_method(module)}.{type(layer).__name__}",
        enabled=selection.enabled,
        active_adapters=list(selection.active),
        merged_adapters=list(getattr(module, "merged_adapters", ())) if isinstance(module, AdaptedLayer) else [],
        requires_grad={a: _same(p.requires_grad for p in _parameters(parts[a])) for a in here},
        available_adapters=here,
        devices={a: sorted({p.device.type for p in _parameters(parts[a])}) for a in here},
        quantization_backend=storage.backend(layer),
    )


def _parts(module: AdaptedLayer | CopiedLayer) -> dict[str, list[nn.Module]]:
    """The modules that each adapter has at one layer."""
    holders = module.slots if isinstance(module, AdaptedLayer) else [module.modules_to_save]
    found: dict[str, list[nn.Module]] = {}
    for holder in holders:
        for name, part in holder.items():
            found.setdefault(name, []).append(part)
    return found


def _frozen(module: AdaptedLayer | CopiedLayer) -> nn.Module:
    return module.base_layer if isinstance(module, AdaptedLayer) else module.original_module


def _method(module: AdaptedLayer | CopiedLayer) -> str:
    if isinstance(module, CopiedLayer):
        return "modules_to_save"
    kinds = {type(part).__name__.removesuffix("Adapter").lower() for part in module.adapters.values()}
    return "+".join(sorted(kinds)) or ("trainable_tokens" if module.uses("tokens") else "bias")


def _parameters(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for part in parts for p in part.parameters() if p.is_floating_point()]


def _same(values: Iterable[Any]) -> Any:
    """The one value that all have; ``"irregular"`` where they differ."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    if not distinct:
        return False
    return distinct[0] if len(distinct) == 1 else "irregular"


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The state of all adapters of a model, layers taken together; where they differ it is ``"irregular"``.

    Args:
        model: a `PeftModel`, or a plain model with injected adapters.

    Raises:
        CapabilityError: as for `get_layer_status`.
    """
    layers, tuner = get_layer_status(model), tuner_of(model)
    trainable, total = count_parameters(model)
    adapters = sorted({name for layer in layers for name in layer.available_adapters})
    wrapped = tuner.model is not model
    return TunerModelStatus(
        base_model_type=type(tuner.model).__name__ if wrapped or hasattr(model, "config") else "other",
        adapter_model_type=_model_type(tuner) if wrapped else "None",
        peft_types={name: config.peft_type for name, config in tuner.configs.items()} if wrapped else {},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=_same(layer.enabled for layer in layers),
        active_adapters=_same(layer.active_adapters for layer in layers),
        merged_adapters=_merged(layers),
        requires_grad={a: _same(s.requires_grad[a] for s in layers if a in s.requires_grad) for a in adapters},
        available_adapters=adapters,
        devices={a: sorted({d for s in layers for d in s.devices.get(a, ())}) for a in adapters},
        quantization_backend=_same(layer.quantization_backend for layer in layers),
    )


def _merged(layers: Iterable[TunerLayerStatus]) -> list[str] | Irregular:
    """The adapters that are merged wherever they can be: a module that is saved whole has nothing to merge."""
    layers = [layer for layer in layers if not layer.module_type.startswith("modules_to_save.")]
    merged = {name for layer in layers for name in layer.merged_adapters}
    unmerged = {name for layer in layers for name in layer.available_adapters if name not in layer.merged_adapters}
    return "irregular" if merged & unmerged else sorted(merged)


def _model_type(tuner: Tuner) -> str:
    kinds = {type(config).__name__.removesuffix("Config") for config in tuner.configs.values()}
    return f"{kinds.pop()}Model" if len(kinds) == 1 else "MixedModel"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The numbers of trainable and of all parameters; a 4-bit parameter counts for the numbers it stores."""
    trainable = total = 0
    for parameter in model.parameters():
        count = storage.numel(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
