"""What frozen layers see of the data, before an adapter starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError, CheckpointError, first_line
from adapterkit.given import misfit
from adapterkit.injection.lookup import check_is_adapted
from adapterkit.injection.making import Maker, with_heads
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.nn.module import check_is_module
from adapterkit.nn.selection import Selection
from adapterkit.nn.view import kind_of
from adapterkit.registry import tasks
from adapterkit.targets.matching import modules_of
from adapterkit.targets.tying import Tied

See = Callable[[str, Tensor], None]


def targets_of(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The layers of a plain model that `adapterkit.get_peft_model` would adapt, by name.

    Raises:
        CapabilityError: some of what it would adapt is no linear layer.
    """
    check_is_module(model)
    if not isinstance(config, LoraConfig):
        raise misfit("config", config, "a LoraConfig")
    modules = modules_of(model)
    if config.task_type is not None:
        config = with_heads(config, modules, tasks[config.task_type.lower()].wrapper_class().heads)  # type: ignore[assignment]
    tied = Tied(model, modules, config)
    settled: Any = tied.settled(config)
    settled, chosen = Maker(model, modules, Selection()).targets(settled, tied)
    others = [*(settled.target_parameters or ()), *(name for name in chosen if kind_of(modules[name]) != "linear")]
    if others:
        scheme = config.init_lora_weights
        raise CapabilityError(f"init_lora_weights={scheme!r} is for linear layers only, and these are none: {others}")
    return {name: modules[name] for name in chosen}


def frozen_of(model: Any, adapter_name: str) -> dict[str, nn.Module]:
    """The frozen layers that an adapter of an adapted model is at, by name."""
    check_is_adapted(model)
    model.base_model.require(adapter_name)
    layers = model.base_model.layers.items()
    return {name: layer.base_layer for name, layer in layers if adapter_name in layer.adapters}


@contextmanager
def observing(layers: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Inside the block ``see`` is given the name and the input of every layer that is called."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            see(name, inputs[0].detach())

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def as_base(model: Any) -> Iterator[None]:
    """Inside the block an adapted model is its base model, in evaluation mode."""
    with in_mode(model, training=False), model.disable_adapter():
        yield


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside the block a model is in training mode, or in evaluation mode."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def rows_of(x: Tensor, batch: Any) -> Tensor:
    """A layer's input as rows ``(tokens, features)``, those of padding left out where the batch says which they are."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.shape == x.shape[:-1]:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(on_device(value, device) for value in batch)
    return batch


def device_of(layers: Mapping[str, nn.Module]) -> torch.device:
    """Where the layers are.

    Raises:
        CapabilityError: there is nothing to start from data.
    """
    for layer in layers.values():
        return next(layer.parameters()).device
    raise CapabilityError("no linear layer is adapted: there is nothing to start from data")


def learnt(path: str | None, keys: Iterable[str], device: torch.device) -> dict[str, Tensor] | None:
    """The tensors of a file in which an earlier start left what it learnt; None without one.

    Raises:
        CheckpointError: it is not a file of tensors, or is of other layers.
    """
    if path is None or not Path(path).is_file():
        return None
    try:
        tensors = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # pickle's own errors: weights_only refuses whatever is not a tensor
        raise CheckpointError(f"{path} is not a file of tensors: {first_line(error)}") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} is not a file of tensors by name")
    missing = [key for key in keys if key not in tensors]
    if missing:
        raise CheckpointError(f"{path} is of other layers: it has no {missing[0]!r}; delete it to learn from the data")
    return tensors
