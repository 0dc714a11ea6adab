"""Rows of low-rank adapters on a GPU, a token each, in one Triton kernel instead of two products.

Every block of a row's outputs computes the row's ``A x`` for itself, which costs less than starting a second kernel:
64 rows of rank 16 through 2048 x 2048 take 8 us instead of 18 on an H200, and half of the host's time
(``python -m bench --device cuda --suite gpu_rows``). Imported where a row is on a GPU; Triton comes with PyTorch there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_OUTPUTS = 512
"""How many outputs a program computes."""

_COLUMNS = 256
"""How many columns of A a program reads at once."""


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]  # noqa: ANN202
    y,  # noqa: ANN001
    x,  # noqa: ANN001
    inner,  # noqa: ANN001
    outer,  # noqa: ANN001
    width,  # noqa: ANN001
    outputs,  # noqa: ANN001
    rank,  # noqa: ANN001
    step,  # noqa: ANN001
    ranks: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
):
    """``y[row] += (x[row] A[owner]^T) B[owner]`` for one block of outputs, where ``owner = step * row``; the grid is
    ``(rows, blocks)``."""
    row = tl.program_id(0).to(tl.int64)
    owner = row * step
    r = tl.arange(0, ranks)
    low = tl.zeros((ranks,), dtype=tl.float32)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        inside = column < width
        given = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
        places = inner + (owner * rank + r[:, None]) * width + column[None, :]
        tile = tl.load(places, mask=(r[:, None] < rank) & inside[None, :], other=0.0).to(tl.float32)
        low += tl.sum(tile * given[None, :], 1)
    output = tl.program_id(1) * block + tl.arange(0, block)
    inside = output < outputs
    places = outer + (owner * rank + r[:, None]) * outputs + output[None, :]
    tile = tl.load(places, mask=(r[:, None] < rank) & inside[None, :], other=0.0).to(tl.float32)
    there = y + row * outputs + output
    sums = tl.load(there, mask=inside, other=0.0).to(tl.float32) + tl.sum(tile * low[:, None], 0)
    tl.store(there, sums.to(y.dtype.element_ty), mask=inside)


def add_rows(y: Tensor, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """``y + (x A^T) B``, each row its own, written to ``y`` and summed in float32.

    Args:
        y: ``(rows, 1, out)``, contiguous, as are the others.
        x: ``(rows, 1, in)``.
        inner: ``A (rows or 1, r, in)``, r at most `adapterkit.nn.forms.MAX_RANK`.
        outer: ``B (rows or 1, r, out)``.
    """
    owners, rank, width = inner.shape
    outputs = y.shape[-1]
    ranks = triton.next_power_of_2(rank)
    grid = (len(y), triton.cdiv(outputs, _OUTPUTS))
    step = 0 if owners == 1 else 1
    with torch.cuda.device_of(y):
        _kernel[grid](y, x, inner, outer, width, outputs, rank, step, ranks, _COLUMNS, _OUTPUTS, num_warps=4)
    return y
