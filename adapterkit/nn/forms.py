"""Forms in which an adapter may say what it does apart from computing it, for merging and for rows of many adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_RANK = 64
"""Up to which rank a row is computed in one kernel: beyond it a tile of A has too few columns."""


class RowForm(NamedTuple):
    """What an adapter does to the rows that are its own, with the numbers apart from the arithmetic.

    The functions are given the tensors with a dimension for the rows in front: of the rows' number, or 1 where all rows
    have the same. Functions that are the same, or equal, are taken to do the same.
    """

    tensors: tuple[Tensor, ...]
    on_input: Callable[..., Tensor] | None = None
    """``(x, *tensors)``, where ``x`` is ``(rows, tokens, in_features)``, to the same: `LayerAdapter.adapt_input`."""
    on_output: Callable[..., Tensor] | None = None
    """``(y, x, *tensors)`` to the same as ``y (rows, tokens, out_features)``, which it may write to."""
    has_ranks: bool = False
    """Whether the tensors' first size is a rank, so that they may be filled up with zeros."""

    def kind(self) -> tuple[Any, ...]:
        """The same for adapters that can be computed together."""
        return self.on_input, self.on_output, *(tensor.shape[self.has_ranks :] for tensor in self.tensors)


class LowRank(NamedTuple):
    """The change ``scaling * outer @ inner`` of a linear layer's weight."""

    outer: Tensor  # (out_features, r)
    inner: Tensor  # (r, in_features)
    scaling: float

    def by_row(self, dtype: torch.dtype) -> RowForm:
        """The same for one row of many."""
        outer = (self.outer.T * self.scaling).to(dtype)
        return RowForm((self.inner.to(dtype), outer.contiguous()), on_output=add_low_rank_rows, has_ranks=True)


def add_low_rank_rows(y: Tensor, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Each row's own product. The inner one is computed as ``inner x^T``: factors that come from memory are read up to
    twice as fast by rows, and for many tokens a product whose short side is the rank's is slow the other way round.

    Args:
        y: ``(rows, tokens, out)``, which is written to.
        x: ``(rows, tokens, in)``.
        inner: ``(rows or 1, r, in)``.
        outer: ``(rows or 1, r, out)``.
    """
    if y.is_cuda and _fits_one_kernel(y, x, inner):
        kernels = row_kernels()
        if kernels is not None:
            return kernels.add_rows(y, x.contiguous(), inner, outer)  # type: ignore[no-any-return]
    if len(inner) == 1 and y.is_contiguous():  # of any other, flattening may give a copy
        y.flatten(0, 1).addmm_((inner[0] @ x.flatten(0, 1).T).T, outer[0])
        return y
    inner, outer = inner.expand(len(x), -1, -1), outer.expand(len(x), -1, -1)
    return y.baddbmm_(inner.bmm(x.mT).mT, outer)


def _fits_one_kernel(y: Tensor, x: Tensor, inner: Tensor) -> bool:
    """Whether `adapterkit.nn.triton_rows` computes it: a token a row, each of its own adapter, and no derivative."""
    is_single = x.shape[1] == 1 and len(inner) == len(x) and inner.shape[1] <= MAX_RANK
    is_here = inner.get_device() == x.get_device() == y.get_device()  # a kernel is given addresses
    return is_single and is_here and y.is_contiguous() and y.element_size() <= 4 and not torch.is_grad_enabled()


@cache
def row_kernels() -> Any:
    """`adapterkit.nn.triton_rows`, or None where Triton is not installed."""
    try:
        from adapterkit.nn import triton_rows
    except ImportError:
        return None
    return triton_rows
