"""The same adapters with a rank and a scale of choice, so that others can take their place in a compiled model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError
from adapterkit.methods.lora.config import LoraConfig


def pad(config: LoraConfig, adapters: dict[str, Any], rank: int | None) -> LoraConfig:
    """Give adapters this rank and a scale of 1, and leave what they compute: zeros are added, and B takes in the scale.

    Args:
        config: theirs.
        adapters: by layer name; changed in place.
        rank: None takes the largest of theirs.

    Returns:
        the config that now describes them.

    Raises:
        CapabilityError: one cannot be padded, or has a larger rank; nothing has changed then.
    """
    wanted = rank or max(adapter.r for adapter in adapters.values())
    for name, adapter in adapters.items():
        _check(name, adapter, wanted)
    for adapter in adapters.values():
        _pad(adapter, wanted)
    changes: dict[str, Any] = {
        "r": wanted,
        "lora_alpha": wanted,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return config.model_copy(update=changes)


def _check(name: str, adapter: Any, rank: int) -> None:
    layer = adapter.layer
    groups = getattr(layer.layer, "groups", 1)
    is_divided = layer.kind == "stack" or groups > 1 or adapter.blocks != (1, 1)
    if is_divided or "start_A" in adapter._buffers or adapter.awaits_data:
        raise CapabilityError(
            f"{name}: this adapter cannot be given another rank: experts, groups, blocks, or a start to keep"
        )
    if adapter.r > rank:
        raise CapabilityError(f"{name}: rank {adapter.r} is above {rank}, for which the model was prepared")


@torch.no_grad()
def _pad(adapter: Any, rank: int) -> None:
    a, b = adapter.factors()
    _replace(adapter, (a, b), (longer(a, rank, 0), longer(b * adapter.scaling, rank, 1)))
    bias = getattr(getattr(adapter, "lora_B", None), "bias", None)
    if bias is not None:
        bias.mul_(adapter.scaling)
    adapter.r, adapter.scaling, adapter.padded = rank, 1.0, True


def longer(factor: Tensor, size: int, dim: int) -> Tensor:
    """A factor with zeros added, up to this size; itself where it has it."""
    if factor.shape[dim] == size:
        return factor
    shape = list(factor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([factor, factor.new_zeros(shape)], dim)


def _replace(adapter: nn.Module, old: Iterable[Tensor], new: Iterable[Tensor]) -> None:
    """New parameters in the place of old ones: whoever has kept something of the old ones sees that they are gone."""
    for before, after in zip(old, new, strict=True):
        for module in adapter.modules():
            for name, parameter in module._parameters.items():
                if parameter is before:
                    module._parameters[name] = nn.Parameter(after, requires_grad=before.requires_grad)
