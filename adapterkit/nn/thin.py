"""Products whose result has few columns: the ranks of an adapter.

How long they take depends on the way round in which the library is asked. On AMD's processors MKL takes up to four
times as long for few columns in float32 as for few rows (``python -m bench --suite thin``), on others as long or less;
and less everywhere where the product has few rows and few columns.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 16
"""Up to so many rows the usual way is the faster."""


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


def _prefers_few_rows(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and len(x) > _FEW and not torch.compiler.is_compiling() and _is_amd()


@cache
def _is_amd() -> bool:
    """Whether PyTorch computes on an AMD processor, by MKL."""
    described = Path("/proc/cpuinfo")
    return torch._C.has_mkl and described.exists() and "AuthenticAMD" in described.read_text()
