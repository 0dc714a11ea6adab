"""DoRA in the form in which rows of many adapters are computed at once.

Of ``y = W x + b`` it makes ``c (y - b + s B A x) + b = c y + (1 - c) b + c s B A x``, with ``c = m / ||W + s B A||``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapterkit.methods.lora import fused
from adapterkit.nn.forms import RowForm, add_low_rank_rows

if TYPE_CHECKING:
    from adapterkit.methods.lora.adapter import LoraAdapter


def form_of_dora(adapter: LoraAdapter, dtype: torch.dtype) -> RowForm:
    """For an adapter of a linear layer that drops nothing."""
    a, b = fused.factors(adapter)
    scale, bias = adapter.lora_magnitude_vector / adapter.norm(), adapter.layer.bias
    shift = torch.zeros_like(scale) if bias is None else (1 - scale) * bias
    outer = b.T * (scale * adapter.scaling)  # (r, out_features)
    tensors = (a, outer, scale[None], shift[None])
    return RowForm(tuple(t.to(dtype).contiguous() for t in tensors), on_output=_add_rows, has_ranks=True)


def _add_rows(y: Tensor, x: Tensor, inner: Tensor, outer: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Each row's own, with ``scale`` and ``shift (rows, 1, out_features)``."""
    return add_low_rank_rows(torch.addcmul(shift, y, scale), x, inner, outer)
