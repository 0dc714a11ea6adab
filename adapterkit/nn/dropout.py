"""Dropout on what an adapter adds, rather than on what it reads."""

from __future__ import annotations

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

    def forward(self, update: Tensor, dim: int = -1) -> Tensor:
        """``update`` of any shape, whose outputs are along ``dim``, to the same."""
        if not self.training or not (self.outputs or self.whole):
            return update
        size = update.shape[dim]
        keep = (torch.rand(size, device=update.device) >= self.outputs).to(update.dtype)
        if self.rescale:
            keep = keep / keep.mean().clamp_min(1 / size)
        keep = keep * (torch.rand((), device=update.device) >= self.whole)
        shape = [1] * update.ndim
        shape[dim] = size
        return update * keep.reshape(shape)
