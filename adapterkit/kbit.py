"""Base models in few bits, and in half precision, made ready for training adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from adapterkit.given import check_mapping, misfit
from adapterkit.nn import storage
from adapterkit.nn.module import check_is_module


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> nn.Module:
    """Freeze a quantised base model and make training through it stable and frugal.

    All parameters are frozen; those in a half type, such as norms, are cast to float32, unless a quantiser's own
    kernels need them as they are. If anything is quantised, checkpointing is switched on.

    Args:
        model: changed in place.
        use_gradient_checkpointing: recompute activations in backward where the model is quantised.
        gradient_checkpointing_kwargs: passed on to the model's ``gradient_checkpointing_enable``.
        auto_clear_cache: give memory that casting has freed back to the device.

    Returns:
        the same model.
    """
    check_is_module(model)
    if gradient_checkpointing_kwargs is not None:
        check_mapping(gradient_checkpointing_kwargs, "gradient_checkpointing_kwargs", "a mapping of options")
    model.requires_grad_(False)
    backends = {storage.backend(module) for module in model.modules() if hasattr(module, "weight")} - {None}
    if all(storage.takes_any_type(name) for name in backends):
        for parameter in model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16) and not storage.keeps_type(parameter):
                parameter.data = parameter.data.float()
        if auto_clear_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if backends and use_gradient_checkpointing:
        _checkpoint_gradients(model, dict(gradient_checkpointing_kwargs or {}))
    return model


def _checkpoint_gradients(model: Any, options: dict[str, Any]) -> None:
    """Reentrant checkpointing needs an input that requires gradients; the frozen embeddings' output is made one."""
    if options.get("use_reentrant", True):
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
        else:
            model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen parameters to ``dtype``, a half type, and trainable ones to float32, as mixed precision wants them.

    Quantised weights stay as they are.
    """
    check_is_module(model)
    if not isinstance(dtype, torch.dtype):
        raise misfit("dtype", dtype, "a torch.dtype")
    for parameter in model.parameters():
        if parameter.is_floating_point() and not storage.keeps_type(parameter):
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def infer_device() -> str:
    """The type of the accelerator that is there, as PEFT's examples move models to it; ``cpu`` where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
