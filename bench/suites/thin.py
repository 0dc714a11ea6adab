"""Products with few columns in float32, and the same taken as few rows: which way round this processor is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import silent
from bench.rows import OURS, PEFT, Row
from bench.timing import Runner

SIZES = ((768, 768), (768, 3072))


def rows(runner: Runner) -> Iterator[Row]:
    for rank in (8, 16):
        for wide, out in SIZES:
            x, a, grad, b = (torch.randn(s) for s in ((1024, wide), (rank, wide), (1024, out), (out, rank)))
            yield _row(runner, f"x A^T, 1024 x {wide}, rank {rank}", lambda: (a @ x.t()).t(), lambda: F.linear(x, a))
            yield _row(runner, f"g B, 1024 x {out}, rank {rank}", lambda: (b.t() @ grad.t()).t(), lambda: grad @ b)


def _row(runner: Runner, name: str, few_rows: Callable[[], Tensor], few_columns: Callable[[], Tensor]) -> Row:
    torch.testing.assert_close(few_rows(), few_columns(), atol=1e-3, rtol=1e-4)
    times = runner.interleave({OURS: silent(few_rows), PEFT: silent(few_columns)}, 60, inner=3)
    return Row.of_times(name, times, note="not PEFT: as few rows, as few columns")
