"""LoRA-GA (Wang et al., 2024), https://arxiv.org/abs/2407.05000: A and B start as directions of the loss's gradient
with respect to the weight, so that the first steps are those of full fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError, ConfigError
from adapterkit.files import replacing
from adapterkit.given import check_callable, check_path
from adapterkit.methods.lora import start
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.methods.lora.observe import as_base, device_of, frozen_of, in_mode, learnt, on_device, targets_of
from adapterkit.nn import storage
from adapterkit.nn.view import LayerView

BATCHES = 64
"""How many batches a run takes the gradient of."""

_SUFFIX = "._peft_loraga_grad"


def preprocess_loraga(
    model: nn.Module, lora_config: LoraConfig, train_step: Callable[[], None], cache_file: str | None = None
) -> None:
    """Learn the gradients that LoRA-GA starts from; `adapterkit.get_peft_model` then finds them at the layers, and
    leaves them.

    Args:
        model: the plain model.
        lora_config: with ``init_lora_weights="lora_ga"``.
        train_step: calls the model on some batches, and ``backward`` on each loss.
        cache_file: file of the gradients: read if it is there, else written.

    Raises:
        ConfigError: the config starts otherwise.
        CapabilityError: a layer is quantised, and has no gradient.
        CheckpointError: the file is none of tensors, or is of other layers.
    """
    check_callable(train_step, "train_step")
    if cache_file is not None:
        check_path(cache_file, "cache_file", "the path of a file")
    layers = targets_of(model, lora_config)
    known = learnt(cache_file, [f"{name}{_SUFFIX}" for name in layers], device_of(layers))
    if known is not None:
        _leave(layers, {name: known[f"{name}{_SUFFIX}"] for name in layers})
        return
    with in_mode(model, training=True):
        gradients = _gradients(model, layers, lora_config, train_step)
    if cache_file is not None:
        with replacing(Path(cache_file)) as temporary:
            torch.save({f"{name}{_SUFFIX}": gradient for name, gradient in gradients.items()}, temporary)
    _leave(layers, gradients)


def _gradients(
    model: nn.Module, layers: Mapping[str, nn.Module], config: LoraConfig, train_step: Callable[[], None]
) -> dict[str, Tensor]:
    """The mean gradient of every layer's weight, as the layer stores it."""
    if config.lora_ga_config is None:
        raise ConfigError(f"LoRA-GA needs init_lora_weights='lora_ga', not {config.init_lora_weights!r}")
    quantised = [name for name, layer in layers.items() if storage.is_quantised(layer)]
    if quantised:
        raise CapabilityError(f"LoRA-GA needs gradients, and these are quantised: {quantised}")
    with _only_trained(model, layers), torch.enable_grad(), _counting(layers) as counts:
        train_step()
        missing = [name for name in layers if not counts[name]]
        if missing:
            raise ConfigError(f"LoRA-GA: the loss has not reached {missing}")
        weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
        return {name: weight.grad / counts[name] for name, weight in weights.items()}


@contextmanager
def _only_trained(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block the layers' weights are the only parameters that receive gradients."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    weights: list[Any] = [layer.weight for layer in layers.values()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, requires_grad in before.items():
            parameter.requires_grad_(requires_grad)
        for weight in weights:
            weight.grad = None


@contextmanager
def _counting(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, int]]:
    """How often a gradient has arrived at each layer's weight."""
    counts = dict.fromkeys(layers, 0)

    def counter(name: str) -> Callable[[Tensor], None]:
        def count(parameter: Tensor) -> None:
            counts[name] += 1

        return count

    weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
    handles = [weight.register_post_accumulate_grad_hook(counter(name)) for name, weight in weights.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _leave(layers: Mapping[str, nn.Module], gradients: Mapping[str, Tensor]) -> None:
    for name, layer in layers.items():
        gradient = gradients[name]
        setattr(layer, start.GRADIENT, gradient.T if LayerView(layer).transposed else gradient)


def start_from_data(model: Any, adapter_name: str, batches: Iterable[Any], *, loss: Callable[..., Tensor]) -> None:
    """LoRA-GA as a run starts it."""
    layers, config = frozen_of(model, adapter_name), model.peft_config[adapter_name]
    device = device_of(layers)

    def train_step() -> None:
        for batch in islice(batches, BATCHES):
            loss(model, on_device(batch, device)).backward()  # type: ignore[no-untyped-call]

    with as_base(model):
        _leave(layers, _gradients(model, layers, config, train_step))
    start.from_learnt(model, adapter_name, layers)
