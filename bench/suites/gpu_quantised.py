"""The rows of `bench.suites.gpu` on a base that bitsandbytes stores in 4 and in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import Row
from bench.suites import gpu
from bench.timing import Runner


def rows(runner: Runner) -> Iterator[Row]:
    for bits in (8,) if runner.smoke else (4, 8):  # on a CPU bitsandbytes takes no layer of the tiny model's sizes in 4
        yield from gpu.rows(runner, bits=bits)
