"""Interleaved rounds and paired ratios."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

Work = Callable[[], float | None]
"""One run of a contender. A number it returns takes the place of the measured seconds."""

Times = dict[str, list[float]]
"""Seconds by contender; position i is round i for every one of them."""


@dataclass
class Runner:
    """How the suites measure."""

    device: str = "cpu"
    quick: bool = False
    smoke: bool = False
    """Run every line of a suite once, on sizes that mean nothing."""
    random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def clock(self) -> float:
        """Seconds: CPU time of this process, or on a GPU wall time after all its work is done."""
        if not self.cuda:
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def rounds(self, full: int) -> int:
        """How many rounds, from the number that a full run takes."""
        if self.smoke:
            return 1
        return max(2, full // 6) if self.quick else full

    def interleave(self, works: Mapping[str, Work], rounds: int, *, inner: int = 1, warm: int = 1) -> Times:
        """Every contender ``rounds`` times, in random order, ``inner`` calls a time."""
        times: Times = {name: [] for name in works}
        for work in [*works.values()] * warm:
            work()
        with _no_collection():
            for _ in range(self.rounds(rounds)):
                names = list(works)
                self.random.shuffle(names)
                for name in names:
                    times[name].append(self._run(works[name], inner))
        return times

    def _run(self, work: Work, inner: int) -> float:
        start, given = self.clock(), None
        for _ in range(inner):
            given = work()
        return (self.clock() - start) / inner if given is None else given


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def ratio(times: Times, of: str, to: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True) if b)


def added(times: Times, of: str, to: str = "bare") -> float:
    """What a contender adds to the bare model, in percent of it."""
    return 100 * (ratio(times, of, to) - 1)


def added_ratio(times: Times, of: str, to: str, bare: str = "bare") -> float:
    """What one contender adds to the bare model, over what another adds: a ratio of medians, as single rounds of the
    smaller one can be near zero."""
    first, second = (statistics.median(a - b for a, b in zip(times[n], times[bare], strict=True)) for n in (of, to))
    return first / second if second else float("nan")
