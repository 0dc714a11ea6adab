"""The rows of `bench.suites.gpu` with models that `torch.compile` has compiled."""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import Row
from bench.suites import gpu
from bench.timing import Runner


def rows(runner: Runner) -> Iterator[Row]:
    yield from gpu.rows(runner, compiled=True)
