"""LoftQ (Li et al., 2023), https://arxiv.org/abs/2310.08659, on a base that is quantised already: the factors start as
what quantisation lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from adapterkit.errors import CapabilityError, CheckpointError
from adapterkit.files import fetch
from adapterkit.given import check_path
from adapterkit.injection.lookup import check_is_adapted
from adapterkit.methods.lora.init import leading
from adapterkit.nn import storage

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: Any,
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Callable[[Any, str], bool] | None = None,
) -> None:
    """Give an adapter on a quantised base the factors nearest to what quantisation lost of the weights.

    Args:
        peft_model: the adapted model.
        model_path: directory or file of the weights before quantisation, in safetensors; None is where the base came
            from.
        adapter_name: which adapter.
        callback: called with the model and the layer's name after each layer; False takes the layer's change back.

    Raises:
        CapabilityError: no layer of the adapter is quantised.
        CheckpointError: the weights are not there.
    """
    check_is_adapted(peft_model)
    if model_path is not None:
        check_path(model_path, "model_path")
    tuner = peft_model.base_model
    tuner.require(adapter_name)
    layers = {
        name: layer
        for name, layer in tuner.layers.items()
        if adapter_name in layer.adapters and storage.is_quantised(layer.base_layer)
    }
    if not layers:
        raise CapabilityError(f"no layer of adapter {adapter_name!r} is quantised: there is nothing to make up for")
    weights = _Weights(tuner.model, model_path)
    for name, layer in layers.items():
        adapter = layer.adapters[adapter_name]
        factors, before = adapter.factors(), [factor.clone() for factor in adapter.factors()]
        lost = weights[name].to(layer.view.device, torch.float32) - layer.view.weight.float()
        for factor, value in zip(factors, leading(lost, adapter.r), strict=True):
            factor.copy_(value / adapter.scaling**0.5)
        if callback is not None and not callback(peft_model, name):
            for factor, value in zip(factors, before, strict=True):
                factor.copy_(value)


class _Weights:
    """The weights of a model by layer name, read one at a time."""

    def __init__(self, model: Any, path: str | Path | None) -> None:
        self.prefix = f"{getattr(model, 'base_model_prefix', '')}."
        place = path or getattr(getattr(model, "config", None), "name_or_path", None)
        if not place:
            raise CheckpointError("the base does not say where its weights came from: give model_path")
        self.files: dict[str, Path] = {}
        for file in [Path(place)] if Path(place).is_file() else _shards(place):
            with safe_open(file, framework="pt") as opened:
                self.files |= dict.fromkeys(opened.keys(), file)

    def __getitem__(self, layer: str) -> Tensor:
        for key in (f"{layer}.weight", f"{layer}.weight".removeprefix(self.prefix), f"{self.prefix}{layer}.weight"):
            if key in self.files:
                with safe_open(self.files[key], framework="pt") as opened:
                    return opened.get_tensor(key)  # type: ignore[no-any-return]
        raise CheckpointError(f"{layer}.weight is not among the {len(self.files)} tensors of the weights given")


def _shards(place: str | Path) -> list[Path]:
    """The files of a model that is in one piece or in several."""
    whole = fetch(place, _WHOLE, local_files_only=True)
    if whole.is_file():
        return [whole]
    index = fetch(place, _INDEX, local_files_only=True)
    if not index.is_file():
        raise CheckpointError(f"{index.parent} has neither {_WHOLE} nor {_INDEX}")
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [index.parent / name for name in names]
