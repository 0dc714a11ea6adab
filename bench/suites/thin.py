"""Products with few columns in float32, and the same taken as few rows: which way round this processor is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import silent
from bench.rows import OURS, PEFT, Row
from bench.timing import Runner

SIZES = ((768, 768), (768, 3072))


def rows(runner: Runner) -> Iterator[Row]:
    for count, rank in ((1024, 8), (1024, 16), (8, 8)):
        for wide, out in SIZES:
            x, a, grad, b = (torch.randn(s) for s in ((count, wide), (rank, wide), (count, out), (out, rank)))
            name = f"x A^T, {count} x {wide}, rank {rank}"
            yield _row(runner, name, partial(_as_few_rows, x, a.t()), partial(F.linear, x, a))
            name = f"g B, {count} x {out}, rank {rank}"
            yield _row(runner, name, partial(_as_few_rows, grad, b), partial(torch.mm, grad, b))


def _as_few_rows(x: Tensor, b: Tensor) -> Tensor:
    return (b.t() @ x.t()).t()


def _row(runner: Runner, name: str, few_rows: Callable[[], Tensor], few_columns: Callable[[], Tensor]) -> Row:
    torch.testing.assert_close(few_rows(), few_columns(), atol=1e-3, rtol=1e-4)
    times = runner.interleave({OURS: silent(few_rows), PEFT: silent(few_columns)}, 60, inner=3)
    return Row.of_times(name, times, note="not PEFT: as few rows, as few columns")
