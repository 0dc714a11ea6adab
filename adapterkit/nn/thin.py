"""Products that have few columns, the ranks of an adapter, or are made of so few.

How long they take depends on the way round in which the library is asked. On AMD's processors MKL takes up to four
times as long for few columns in float32 as for few rows (``python -m bench --suite thin``), on others as long or less;
and less everywhere where the product has few rows and few columns. A large result made of few columns it computes there
in upright panels, which is slow where that is added to a matrix that is in no cache.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 16
"""Up to so many rows the usual way is the faster."""

_STRIP = 12
"""How many rows are added to at a time, at the least as many as there are ranks."""

_MANY = 32
"""From so many ranks on the usual way is the faster."""


def times_transposed(x: Tensor, a: Tensor) -> Tensor:
    """``x a^T (rows, r)``, in whichever memory order is the faster.

    Args:
        x: ``(rows, in)``.
        a: ``(r, in)``.
    """
    return (a @ x.t()).t() if _prefers_few_rows(x) else F.linear(x, a)


def times(x: Tensor, b: Tensor) -> Tensor:
    """``x b (rows, r)``, as `times_transposed`.

    Args:
        x: ``(rows, out)``.
        b: ``(out, r)``.
    """
    return (b.t() @ x.t()).t() if _prefers_few_rows(x) else x @ b


def add_product(matrix: Tensor, outer: Tensor, inner: Tensor, scaling: float) -> None:
    """``matrix += s outer inner``, in the order in which the matrix lies in memory. For one that is in no cache: others
    are added to faster by `torch.addmm`.

    Args:
        matrix: ``(out, in)``, written to.
        outer: ``(out, r)``.
        inner: ``(r, in)``.
        scaling: ``s``.
    """
    ranks = len(inner)
    height = max(_STRIP, ranks)
    count = len(matrix) // height if ranks < _MANY and _is_by_mkl_on_amd(matrix) else 0
    if count:
        rows = count * height
        strips = matrix[:rows].view(count, height, -1)
        torch.baddbmm(
            strips, outer[:rows].reshape(count, height, ranks), inner.expand(count, -1, -1), alpha=scaling, out=strips
        )
        matrix, outer = matrix[rows:], outer[rows:]
    if len(matrix):
        matrix.addmm_(outer, inner, alpha=scaling)


def _prefers_few_rows(x: Tensor) -> bool:
    return len(x) > _FEW and _is_by_mkl_on_amd(x)


def _is_by_mkl_on_amd(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and not torch.compiler.is_compiling() and _is_amd()


@cache
def _is_amd() -> bool:
    """Whether PyTorch computes on an AMD processor, by MKL."""
    described = Path("/proc/cpuinfo")
    return torch._C.has_mkl and described.exists() and "AuthenticAMD" in described.read_text()
