"""Exchange an adapter for another under the same name, in place where the shapes are the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from adapterkit.checkpoint.files import Reading
from adapterkit.checkpoint.identity import check_base
from adapterkit.checkpoint.state import set_peft_model_state_dict
from adapterkit.config.base import PeftConfig, check_is_config
from adapterkit.errors import CapabilityError, ConfigError, StateError
from adapterkit.given import check_path, misfit
from adapterkit.injection.lookup import plain, tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.registry import referenced

_INCOMING = "incoming adapter"

_EVERY_MODULES = frozenset(vars(nn.Module()))
"""Attributes that say nothing of what an adapter is: its mode, its hooks."""


def hotswap_adapter(
    model: nn.Module, model_name_or_path: str | Path, adapter_name: str, torch_device: str | None = None, **options: Any
) -> None:
    """Put a saved adapter in the place of a loaded one.

    Which adapters are active, and whether this one is trainable, does not change. Where the new adapter's tensors have
    the shapes of the old one's, they are written into them, so that a compiled model is not compiled again.

    Args:
        model: a `PeftModel`, compiled or not.
        model_name_or_path: directory, or repository on the Hub.
        adapter_name: which loaded adapter is replaced.
        torch_device: device to read the file to.
        options: as for `PeftModel.from_pretrained`.

    Raises:
        StateError: there is no such adapter, or it is merged.
        CapabilityError: the new one is of another method.
        CheckpointError: the files cannot be read, or do not fit; nothing has changed then.
    """
    check_path(model_name_or_path, "model_name_or_path")
    model = plain(model)
    tuner, reading = tuner_of(model), Reading.of(options)
    tuner.require_config([adapter_name], "hotswap_adapter")
    tuner.require_unmerged(adapter_name, "putting another in its place")
    config, old = reading.config(model_name_or_path), tuner.configs[adapter_name]
    if config.peft_type != old.peft_type or config.is_prompt_learning:
        raise CapabilityError(f"a {config.peft_type} adapter cannot be put in the place of a {old.peft_type} one")
    contents = reading.contents(model_name_or_path, torch_device)
    trainable = any(p.requires_grad for _, part in tuner.parts(adapter_name) for p in part.parameters())
    tuner.add(_INCOMING, config)
    try:
        set_peft_model_state_dict(model, contents.tensors, _INCOMING)
        check_base(model, _INCOMING, contents.metadata, str(model_name_or_path))
        rank = _prepared_rank(tuner, adapter_name)
        config = config if rank is None else _padded(tuner, _INCOMING, config, rank)
        _exchange(tuner, adapter_name)
    finally:
        tuner.delete(_INCOMING)
    tuner.configs[adapter_name] = config.model_copy(update={"inference_mode": not trainable})
    tuner.set_trainable(adapter_name, trainable)


def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: PeftConfig | Mapping[str, PeftConfig] | None = None,
    check_compiled: Literal["error", "warn", "ignore"] = "error",
) -> None:
    """Prepare a model so that, once it is compiled, adapters of other ranks and scales can be swapped in without its
    being compiled again. To be called after the first adapter is there, and before `torch.compile`.

    The adapters get the target rank and a scale of 1, and compute what they did; saved, they say so.

    Args:
        model: a `PeftModel`.
        target_rank: the largest rank of the adapters to come; None takes the largest that there is.
        config: further configs that get the target rank; those of the model's adapters do anyway.
        check_compiled: what to do about a model that is compiled already.

    Raises:
        StateError: the model is compiled already, or has no adapter.
        CapabilityError: an adapter cannot be given another rank, or has a larger one.
    """
    tuner = tuner_of(model)
    _check_compiled(model, check_compiled)
    if target_rank is not None and (type(target_rank) is not int or target_rank < 1):
        raise misfit("target_rank", target_rank, "a positive integer")
    others = config.values() if isinstance(config, Mapping) else [config] if config is not None else []
    for other in others:
        check_is_config(other, "config")
    configs = {name: own for name, own in tuner.configs.items() if own is not None}
    if not configs:
        raise StateError("the model has no adapter: load the first one, then prepare the model, then compile it")
    for name, own in configs.items():
        tuner.configs[name] = _padded(tuner, name, own, target_rank)
    for other in others if target_rank is not None else ():
        other.r = target_rank  # type: ignore[attr-defined]


def _check_compiled(model: nn.Module, how: str) -> None:
    if how not in ("error", "warn", "ignore"):
        raise ConfigError(f"check_compiled={how!r}: choices are error, warn and ignore")
    compiled = "_orig_mod" in model._modules or getattr(model, "_compiled_call_impl", None) is not None
    message = "the model is compiled already, and will be once more: prepare it before torch.compile"
    if compiled and how == "error":
        raise StateError(message)
    if compiled and how == "warn":
        warnings.warn(message, UserWarning, stacklevel=3)


def _padded(tuner: Tuner, name: str, config: PeftConfig, rank: int | None) -> PeftConfig:
    """Adapter ``name`` with this rank, in place; gives its config."""
    if config.padding is None:
        raise CapabilityError(f"{config.peft_type} adapters have no rank that could be padded")
    adapters = {target: layer.adapters[name] for target, layer in tuner.layers.items() if name in layer.adapters}
    return referenced(type(config), "padding", config.padding)(config, adapters, rank)  # type: ignore[no-any-return]


def _prepared_rank(tuner: Tuner, name: str) -> int | None:
    """The rank that adapter ``name`` was padded to; None where it was not."""
    held: Iterator[Any] = (layer.adapters[name] for layer in tuner.layers.values() if name in layer.adapters)
    return next((adapter.r for adapter in held if getattr(adapter, "padded", False)), None)


def _exchange(tuner: Tuner, name: str) -> None:
    """Adapter ``name`` becomes what `_INCOMING` is, everywhere."""
    for layer in tuner.layers.values():
        for slot in layer.slots:
            _take_place(slot, name)
    for copied in tuner.copies.values():
        _take_place(copied.modules_to_save, name)


def _take_place(held: nn.ModuleDict, name: str) -> None:
    there = dict(held.items())
    old, new = there.get(name), there.get(_INCOMING)
    if new is None:
        if old is not None:
            del held[name]
    elif old is None or not _write_into(old, new):
        held[name] = new.train(old.training if old is not None else False)


@torch.no_grad()
def _write_into(old: nn.Module, new: nn.Module) -> bool:
    """Copy tensors and numbers from one adapter to another of the same shapes; False where they differ."""
    mine, other = _tensors(old), _tensors(new)
    if {k: t.shape for k, t in mine.items()} != {k: t.shape for k, t in other.items()}:
        return False
    for key, tensor in mine.items():
        tensor.copy_(other[key])
    for key, value in vars(new).items():
        if (value is None or isinstance(value, bool | int | float | str)) and key not in _EVERY_MODULES:
            setattr(old, key, value)
    return True


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
