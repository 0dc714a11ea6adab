"""Dropout that is made again in backward rather than kept, and dropout on what an adapter adds.

A mask is a function of a seed, which is drawn from PyTorch's own stream: the same on every run with the same seeds, and
again under gradient checkpointing. Its elements are taken four to a random number, which costs a fifth of
`torch.nn.functional.dropout` on a CPU; probabilities are multiples of 2^-16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class UpdateDropout(nn.Module):
    """In training, drops single outputs of an update, or all of it.

    Args:
        outputs: how often one output is dropped.
        whole: how often the whole update is dropped.
        rescale: scale the outputs that are left, so that their mean stays.
    """

    def __init__(self, outputs: float, whole: float, *, rescale: bool) -> None:
        super().__init__()
        self.outputs, self.whole, self.rescale = outputs, whole, rescale

    @property
    def drops(self) -> bool:
        """Whether it does anything now."""
        return self.training and bool(self.outputs or self.whole)

    def forward(self, update: Tensor, dim: int = -1) -> Tensor:
        """``update`` of any shape, whose outputs are along ``dim``, to the same."""
        if not self.drops:
            return update
        size = update.shape[dim]
        keep = (torch.rand(size, device=update.device) >= self.outputs).to(update.dtype)
        if self.rescale:
            keep = keep / keep.mean().clamp_min(1 / size)
        keep = keep * (torch.rand((), device=update.device) >= self.whole)
        shape = [1] * update.ndim
        shape[dim] = size
        return update * keep.reshape(shape)


_STEPS = 1 << 16


def draw_seed() -> int:
    """A seed from PyTorch's stream on the CPU, which needs no device to finish its work."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def keep_mask(like: Tensor, dropout: float, seed: int) -> Tensor:
    """True where an element of a tensor of this shape and device is kept; contiguous."""
    generator = torch.Generator(like.device).manual_seed(seed)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    return (words.view(torch.int16)[: like.numel()] >= round(dropout * _STEPS) - _STEPS // 2).view(like.shape)


def rescale(dropout: float) -> float:
    """What the kept elements are multiplied by, so that the mean stays."""
    return _STEPS / (_STEPS - round(dropout * _STEPS))


class _Dropout(torch.autograd.Function):
    """Keeps its seed for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float, seed: int) -> Tensor:
        ctx.dropout, ctx.seed = dropout, seed
        return x * keep_mask(x, dropout, seed) * rescale(dropout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * keep_mask(grad, ctx.dropout, ctx.seed) * rescale(ctx.dropout), None, None


def seeded_dropout(x: Tensor, dropout: float) -> Tensor:
    """`torch.nn.functional.dropout` in training, without keeping the mask."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return nn.functional.dropout(x, dropout)
    return _Dropout.apply(x, dropout, draw_seed())  # type: ignore[no-any-return, no-untyped-call]
