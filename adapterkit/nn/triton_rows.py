"""Rows of low-rank adapters on a GPU in one Triton kernel: a token each of many adapters, or a single one.

Every block of a row's outputs computes the row's ``A x`` for itself, as that costs less than a second kernel: on an
H200 64 rows of rank 16 take 0.4 to 0.75 of the time that two batched products take on the GPU
(``python -m bench --device cuda --suite gpu_rows``). A single row waits for its host, to which one kernel is one start
instead of two. Imported where a row is on a GPU; Triton comes with PyTorch there.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_OUTPUTS = 512
"""How many outputs a program computes."""

_TILE = 16384
"""How many elements of A a program reads at once."""

_compiled: dict[tuple[Any, ...], Any] = {}
"""The kernel as compiled, by sizes, types and device: to find it takes Triton as long in every call as to start it."""

_IS_STARTED_ALONE = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
"""Whether what was compiled takes the arguments that its function takes."""


class _Sizes(NamedTuple):
    """The kernel's arguments of these names, in its order."""

    width: int
    outputs: int
    rank: int
    per_row: int
    to_rank: int
    to_output: int


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]  # noqa: ANN202
    out,  # noqa: ANN001
    y,  # noqa: ANN001
    x,  # noqa: ANN001
    inner,  # noqa: ANN001
    outer,  # noqa: ANN001
    scaling,  # noqa: ANN001
    width,  # noqa: ANN001
    outputs,  # noqa: ANN001
    rank,  # noqa: ANN001
    per_row,  # noqa: ANN001
    to_rank,  # noqa: ANN001
    to_output,  # noqa: ANN001
    ranks: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
):
    """``out[row] = y[row] + s (x[row] A[row]^T) B[row]`` for one block of outputs; the grid is ``(rows, blocks)``.

    ``per_row`` is 1, or 0 where all rows have the same factors; the last two are how far B's elements are apart.
    """
    row = tl.program_id(0).to(tl.int64)
    first = row * per_row * rank
    r = tl.arange(0, ranks)
    low = tl.zeros((ranks,), dtype=tl.float32)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        inside = column < width
        given = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
        places = inner + (first + r[:, None]) * width + column[None, :]
        tile = tl.load(places, mask=(r[:, None] < rank) & inside[None, :], other=0.0).to(tl.float32)
        low += tl.sum(tile * given[None, :], 1)
    output = tl.program_id(1) * block + tl.arange(0, block)
    inside = output < outputs
    places = outer + first * outputs + r[:, None] * to_rank + output[None, :] * to_output
    tile = tl.load(places, mask=(r[:, None] < rank) & inside[None, :], other=0.0).to(tl.float32)
    there = row * outputs + output
    sums = tl.load(y + there, mask=inside, other=0.0).to(tl.float32) + scaling * tl.sum(tile * low[:, None], 0)
    tl.store(out + there, sums.to(out.dtype.element_ty), mask=inside)


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
    return _start(rows, y, y, x, inner, outer, 1.0, _Sizes(width, outputs, rank, 1, outputs, 1))


def add_product(out: Tensor, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``y + s B A x`` for a single row, written to ``out``, which may be ``y``, and summed in float32.

    Args:
        out: ``(..., out)`` of one row, contiguous, as are the others; they may be of different types.
        y: the same.
        x: ``(..., in)``.
        a: ``(r, in)``, r at most `adapterkit.nn.forms.MAX_RANK`.
        b: ``(out, r)``, which need not be contiguous.
        scaling: ``s``.
    """
    rank, width = a.shape
    to_output, to_rank = b.stride()
    return _start(1, out, y, x, a, b, scaling, _Sizes(width, b.shape[0], rank, 0, to_rank, to_output))


def _start(
    rows: int, out: Tensor, y: Tensor, x: Tensor, inner: Tensor, outer: Tensor, scaling: float, sizes: _Sizes
) -> Tensor:
    """Start the kernel, as it was compiled before if it was."""
    index = y.device.index
    grid = (rows, -(-sizes.outputs // _OUTPUTS), 1)
    places = out.data_ptr(), y.data_ptr(), x.data_ptr(), inner.data_ptr(), outer.data_ptr()
    is_aligned = not (places[0] | places[1] | places[2] | places[3] | places[4]) % 16  # as it is compiled for
    key = is_aligned, index, out.dtype, y.dtype, x.dtype, inner.dtype, outer.dtype, sizes
    ranks = 1 << (sizes.rank - 1).bit_length()  # Triton's own helpers take as long as starting a kernel
    constants = ranks, min(_TILE // ranks, 1 << (sizes.width - 1).bit_length()), _OUTPUTS
    with nullcontext() if index is None or index == torch.cuda.current_device() else torch.cuda.device(index):
        compiled = _compiled.get(key)
        if compiled is not None:
            compiled[grid](*places, scaling, *sizes, *constants)
        else:
            made = _kernel[grid](out, y, x, inner, outer, scaling, *sizes, *constants, num_warps=4)
            if is_aligned and made is not None and _IS_STARTED_ALONE:  # Triton's interpreter makes none
                _compiled[key] = made
    return out
