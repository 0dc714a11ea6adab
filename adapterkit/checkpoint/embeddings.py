"""The base's embeddings in an adapter's file: where they are targeted, or the vocabulary is no longer the one on disk.

They travel under the key that PEFT's wrappers around the layer give them, and are read under any of those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.architectures import model_path
from adapterkit.errors import CheckpointError
from adapterkit.files import cached
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.parameters import ParameterAdapters
from adapterkit.nn.view import frozen_of
from adapterkit.targets.tying import EMBEDDINGS

_PREFIXES = ("", "base_model.", "base_model.model.")
_WRAPPERS = re.compile(r"(?<![^.])(?:base_layer|token_adapter|original_module|_orig_mod)\.")


def travelling(tuner: Tuner, name: str, wanted: bool | str) -> dict[str, Tensor]:
    """The frozen weights that adapter ``name`` takes along, by key without a prefix; ``"auto"`` takes those that are
    targeted or were resized."""
    targeted = _targets_embeddings(tuner, name)
    if wanted == "auto":
        wanted = targeted or _was_resized(tuner, name)
    if not wanted:
        return {}
    return {
        f"{_plain(target + '.')}{_wrapping(layer, name)}weight": frozen_weight(layer).detach()
        for target, layer in _layers(tuner, name).items()
        if not targeted or target in tuner.layers
    }


def given(tuner: Tuner, name: str, state: Mapping[str, Tensor], expected: Container[str]) -> dict[str, str]:
    """Which keys of ``state`` are a frozen weight of the base rather than one of ``expected``: layer -> key."""
    weights = {_plain(f"{target}.weight"): target for target in _layers(tuner, name)}
    lasts = [key.split(".")[-2] for key in weights]
    found: dict[str, str] = {}
    for key in state:
        if key.endswith(".weight") and any(last in key for last in lasts):
            names = [_plain(key).removeprefix(prefix) for prefix in _PREFIXES]
            target = next((weights[n] for n in names if n in weights and n not in expected), None)
            if target is not None and not (target in found and ".original_module." in key):
                found[target] = key
    return found


def _plain(key: str) -> str:
    """A key without the names of what may stand around a layer."""
    return _WRAPPERS.sub("", key)


def check(tuner: Tuner, tensors: Mapping[str, Tensor]) -> None:
    """
    Raises:
        CheckpointError: a layer has another length, or holds the merged weight in the place of the frozen one.
    """
    for target, tensor in tensors.items():
        layer = tuner.names[target]
        weight = frozen_weight(layer)
        if weight.shape != tensor.shape:
            raise CheckpointError(
                f"{target}.weight: the file's embedding is {tuple(tensor.shape)}, the model's {tuple(weight.shape)}; "
                "call resize_token_embeddings first"
            )
        if isinstance(layer, AdaptedLayer) and layer.merged and not torch.equal(weight, tensor.to(weight)):
            raise CheckpointError(
                f"{target}.weight: the file has another embedding than the base, and adapters "
                f"{list(layer.merged_adapters)} are merged into it: unmerge first"
            )


def load(tuner: Tuner, tensors: Mapping[str, Tensor]) -> None:
    """Give layers of the base these weights, by layer name."""
    for target, tensor in tensors.items():
        frozen_weight(tuner.names[target]).detach().copy_(tensor)


def frozen_weight(layer: nn.Module) -> Tensor:
    """A layer's weight as it is without adapters, whatever stands around it and is merged into it."""
    if isinstance(layer, AdaptedLayer):
        layer = layer._quantised[0] if layer._quantised else layer.base_layer
    if isinstance(layer, CopiedLayer):
        layer = layer.original_module
    return frozen_of(layer).get("weight", layer.weight)  # type: ignore[no-any-return]


def _layers(tuner: Tuner, name: str) -> dict[str, nn.Module]:
    """The input and output embeddings by name, less those of which adapter ``name`` has a copy."""
    found: dict[str, nn.Module] = {}
    for get in ("get_input_embeddings", "get_output_embeddings"):
        module = None
        with suppress(NotImplementedError):
            module = getattr(tuner.model, get, lambda: None)()
        for target, candidate in tuner.names.items() if module is not None else ():
            if candidate is module and not (isinstance(module, CopiedLayer) and name in module.modules_to_save):
                found[target] = candidate
    return found


def _wrapping(layer: nn.Module, name: str) -> str:
    """What PEFT puts between a layer's name and its frozen weight, for what adapter ``name`` has there."""
    if not isinstance(layer, AdaptedLayer):
        return ""
    if layer.uses("tokens") and name in layer.tokens:
        return "token_adapter.base_layer."
    if layer.uses("parameter_adapters") and name in layer.parameter_adapters:
        held = layer.parameter_adapters[name]
        return "base_layer." * (len(held.adapters) if isinstance(held, ParameterAdapters) else 1)
    return "base_layer." if layer.uses("adapters") and name in layer.adapters else ""


def _targets_embeddings(tuner: Tuner, name: str) -> bool:
    config = tuner.configs.get(name)
    if config is None or config.trains_tokens:
        return False
    return any(
        target.rpartition(".")[2] in EMBEDDINGS and layer.uses("adapters") and name in layer.adapters
        for target, layer in tuner.layers.items()
    )


def _was_resized(tuner: Tuner, name: str) -> bool:
    """Whether the vocabulary is no longer the one on disk. The network is not asked."""
    config = tuner.configs.get(name)
    model_config: Any = getattr(tuner.model, "config", None)
    size = getattr(model_config, "vocab_size", None)
    base = (config and config.base_model_name_or_path) or model_path(tuner.model)
    path = cached(base, "config.json") if size and base else None
    if path is None:
        return False
    original = type(model_config).from_dict(json.loads(path.read_text(encoding="utf-8")))
    return bool(original.vocab_size != size)
