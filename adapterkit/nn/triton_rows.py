"""Rows of many low-rank adapters on a GPU, a token each, in one Triton kernel instead of two batched products.

Every block of a row's outputs computes the row's ``A x`` for itself, as that costs less than a second kernel: on an
H200 64 rows of rank 16 take half to 0.7 of the two products' time on the GPU
(``python -m bench --device cuda --suite gpu_rows``). Imported where a row is on a GPU; Triton comes with PyTorch there.
"""

from __future__ import annotations

from contextlib import nullcontext

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
    ranks: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
):
    """``y[row] += (x[row] A[row]^T) B[row]`` for one block of outputs; the grid is ``(rows, blocks)``."""
    row = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, ranks)
    low = tl.zeros((ranks,), dtype=tl.float32)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        inside = column < width
        given = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
        places = inner + (row * rank + r[:, None]) * width + column[None, :]
        tile = tl.load(places, mask=(r[:, None] < rank) & inside[None, :], other=0.0).to(tl.float32)
        low += tl.sum(tile * given[None, :], 1)
    output = tl.program_id(1) * block + tl.arange(0, block)
    inside = output < outputs
    places = outer + (row * rank + r[:, None]) * outputs + output[None, :]
    tile = tl.load(places, mask=(r[:, None] < rank) & inside[None, :], other=0.0).to(tl.float32)
    there = y + row * outputs + output
    sums = tl.load(there, mask=inside, other=0.0).to(tl.float32) + tl.sum(tile * low[:, None], 0)
    tl.store(there, sums.to(y.dtype.element_ty), mask=inside)


def add_rows(y: Tensor, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """``y + (x A^T) B``, each row its own, written to ``y`` and summed in float32.

    Args:
        y: ``(rows, 1, out)``, contiguous, as are the others.
        x: ``(rows, 1, in)``.
        inner: ``A (rows, r, in)``, r at most `adapterkit.nn.forms.MAX_RANK`.
        outer: ``B (rows, r, out)``.
    """
    rows, rank, width = inner.shape
    outputs = y.shape[-1]
    ranks = 1 << (rank - 1).bit_length()  # Triton's own helpers take as long as starting a kernel
    grid = (rows, -(-outputs // _OUTPUTS))
    here = nullcontext() if y.device.index == _current_device(y) else torch.cuda.device(y.device)
    with here:
        _kernel[grid](y, x, inner, outer, width, outputs, rank, ranks, _COLUMNS, _OUTPUTS, num_warps=4)
    return y


def _current_device(y: Tensor) -> int | None:
    return torch.cuda.current_device() if y.is_cuda else None
