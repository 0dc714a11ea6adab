"""Exchange an adapter for another under the same name, in place where the shapes are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterkit.checkpoint import set_peft_model_state_dict, tuner_of
from adapterkit.errors import CapabilityError
from adapterkit.identity import check_base
from adapterkit.saving import Reading
from adapterkit.tuner import Tuner

_INCOMING = "incoming adapter"


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
        StateError: there is no such adapter.
        CapabilityError: the new one is of another method.
        CheckpointError: the files cannot be read, or do not fit; nothing has changed then.
    """
    model = getattr(model, "_orig_mod", model)
    tuner, reading = tuner_of(model), Reading.of(options)
    tuner.require(adapter_name)
    config, old = reading.config(model_name_or_path), tuner.configs[adapter_name]
    if old is not None and (config.peft_type != old.peft_type or config.is_prompt_learning):
        raise CapabilityError(f"a {config.peft_type} adapter cannot be put in the place of a {old.peft_type} one")
    contents = reading.contents(model_name_or_path, torch_device)
    trainable = {p.requires_grad for _, part in tuner.parts(adapter_name) for p in part.parameters()} == {True}
    tuner.add(_INCOMING, config)
    try:
        set_peft_model_state_dict(model, contents.tensors, _INCOMING)
        check_base(model, _INCOMING, contents.metadata, str(model_name_or_path))
        _exchange(tuner, adapter_name)
    finally:
        tuner.delete(_INCOMING)
    tuner.configs[adapter_name] = config.model_copy(update={"inference_mode": not trainable})
    tuner.set_trainable(adapter_name, trainable)


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
        if isinstance(value, bool | int | float | str) and key != "training":
            setattr(old, key, value)
    return True


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
