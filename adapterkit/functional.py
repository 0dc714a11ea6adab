"""What PEFT's programs import from ``functional``: adapters of plain models, without a wrapper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from adapterkit.build import inject_adapter_in_model
from adapterkit.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from adapterkit.injection.lookup import tuner_of

__all__ = [
    "cast_adapter_dtype", "delete_adapter", "get_peft_model_state_dict", "inject_adapter_in_model", "set_adapter",
    "set_peft_model_state_dict", "set_requires_grad",
]  # fmt: skip

_HALF = (torch.float16, torch.bfloat16)


def set_adapter(
    model: nn.Module, adapter_name: str | Sequence[str], inference_mode: bool = False, layer_cls: type | None = None
) -> None:
    """Use these adapters from now on, and train them; see `adapterkit.PeftModel.set_adapter`.

    Args:
        model: a model with adapters.
        adapter_name: one name or several.
        inference_mode: leave them frozen.
        layer_cls: accepted for PEFT's sake; changes nothing.
    """
    tuner_of(model).set_adapter(adapter_name, inference_mode)


def set_requires_grad(model: nn.Module, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
    """Whether adapters receive gradients; which ones are active does not change."""
    tuner_of(model).set_requires_grad(adapter_names, requires_grad)


def delete_adapter(
    model: nn.Module, adapter_name: str, prefix: str = "", layer_cls: type | None = None
) -> list[str] | None:
    """Remove an adapter.

    Args:
        model: a model with adapters.
        adapter_name: which one.
        prefix: accepted for PEFT's sake; changes nothing.
        layer_cls: the same.

    Returns:
        the adapters that are active now, if there are any.
    """
    tuner = tuner_of(model)
    tuner.delete_adapter(adapter_name)
    return tuner.active_adapters or None


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Let an adapter's tensors that are in half precision be in float32.

    Args:
        model: a model with adapters.
        adapter_name: which one.
        autocast_adapter_dtype: if false, change nothing.
    """
    tuner = tuner_of(model)
    tuner.require(adapter_name)
    for _, part in tuner.parts(adapter_name) if autocast_adapter_dtype else ():
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.dtype in _HALF:
                tensor.data = tensor.data.float()
