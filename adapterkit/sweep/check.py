"""The whole sweep is checked before its first trial: how many would fail, and why."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

LIMIT = 20_000
"""So many trials are checked at most; of larger sweeps, a sample."""

SHOWN = 6
"""So many reasons are told at most."""


@dataclass
class Verdict:
    """What a check of a sweep found."""

    total: int
    checked: int = 0
    failing: int = 0
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong to the trials it would make fail."""
    empty: list[str] = field(default_factory=list)
    """Axes without a value, of which there is no trial."""
    fault: str = ""
    """What is wrong with the sweep as a whole, where its trials are right."""

    @property
    def refused(self) -> bool:
        """Whether the sweep must not begin."""
        return bool(self.failing or self.empty or self.fault)

    def add(self, trial: str, problems: Sequence[str]) -> None:
        """Count one checked trial."""
        self.checked += 1
        self.failing += bool(problems)
        for problem in problems:
            self.reasons.setdefault(problem, []).append(trial)

    def __str__(self) -> str:
        """One screen: the reasons, those of most trials first, each with its first trial."""
        if self.empty:
            return f"{', '.join(self.empty)}: no value to try, so that the sweep has no trial"
        if self.fault:
            return self.fault
        of = f"{self.total}" if self.checked == self.total else f"{self.checked} looked at ({self.total} in all)"
        lines = [f"{self.failing} of {of} trials would fail; nothing was started"]
        ranked = sorted(self.reasons.items(), key=lambda reason: -len(reason[1]))
        for reason, trials in ranked[:SHOWN]:
            head, *rest = reason.splitlines()
            lines += [f"  {head}", *(f"    {line}" for line in rest)]
            lines.append(f"      {len(trials)} trial{'s' if len(trials) > 1 else ''}, the first: {trials[0]}")
        if len(ranked) > SHOWN:
            lines.append(f"  and {len(ranked) - SHOWN} more reasons")
        return "\n".join(lines)


def grid(axes: Mapping[str, Sequence[str]], *, limit: int = LIMIT) -> Iterator[tuple[str, ...]]:
    """Every combination of one value of each axis; of more than ``limit``, an even sample without repeats."""
    sizes = [len(values) for values in axes.values()]
    total = math.prod(sizes)
    if total <= limit:
        yield from itertools.product(*axes.values())
        return
    draw, chosen = random.Random(0), set[int]()
    while len(chosen) < limit:
        chosen.add(draw.randrange(total))
    yield from (_combination(index, list(axes.values())) for index in sorted(chosen))


def _combination(index: int, axes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The combination number ``index`` in the order of `itertools.product`."""
    chosen = []
    for values in reversed(axes):
        index, position = divmod(index, len(values))
        chosen.append(values[position])
    return tuple(reversed(chosen))
