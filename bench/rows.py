"""The one table that the benchmark prints."""

from __future__ import annotations

import math
import statistics
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bench.timing import Times, added, added_ratio, ratio

OURS, PEFT = "adapterkit", "peft"


@dataclass(frozen=True)
class Goal:
    """An upper bound on a row's ratio, or on our own figure where that says more."""

    bound: float
    on: Literal["ratio", "ours"] = "ratio"

    def __str__(self) -> str:
        return f"{'ours ' if self.on == 'ours' else ''}≤ {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line: what was measured, our figure, PEFT's, their ratio, and what was to be reached."""

    name: str
    unit: str
    ours: float
    peft: float = math.nan
    ratio: float = math.nan
    floor: float = math.nan
    """The least figure that is possible, in the unit of the row."""
    goal: Goal | None = None
    note: str = ""

    @classmethod
    def of_times(cls, name: str, times: Times, *, goal: float | None = None, floor: str = "", note: str = "") -> Row:
        """A row in milliseconds; ``floor`` is the contender that does the least work."""
        medians = {key: 1000 * statistics.median(values) for key, values in times.items()}
        relative = ratio(times, OURS, PEFT) if PEFT in times else math.nan
        return cls(
            name,
            "ms",
            medians[OURS],
            medians.get(PEFT, math.nan),
            relative,
            medians.get(floor, math.nan),
            None if goal is None else Goal(goal),
            note,
        )

    @classmethod
    def of_added(cls, name: str, times: Times, goal: Goal | None = None, *, floor: float = math.nan) -> Row:
        """A row in percent of the bare model's time."""
        peft = added(times, PEFT) if PEFT in times else math.nan
        relative = added_ratio(times, OURS, PEFT) if PEFT in times else math.nan
        return cls(name, "% added", added(times, OURS), peft, relative, floor, goal)

    @classmethod
    def of_values(cls, name: str, unit: str, ours: float, peft: float = math.nan, **more: Any) -> Row:
        """A row of two plain figures."""
        return cls(name, unit, ours, peft, ours / peft if peft else math.nan, **more)

    @classmethod
    def of_failure(cls, name: str, error: Exception) -> Row:
        """A row that could not be measured, and why."""
        return cls(
            name, "", math.nan, note=" ".join(f"{type(error).__name__}: {error}".split())[:160].replace("|", "/")
        )

    @property
    def failed(self) -> bool:
        """Whether it could not be measured; a figure that this machine does not have is left out, too."""
        return not self.unit and math.isnan(self.ours)

    @property
    def met(self) -> str:
        """Whether the goal was reached; empty without one."""
        if self.goal is None or math.isnan(self.ours):
            return ""
        value = self.ratio if self.goal.on == "ratio" else self.ours
        return "yes" if value <= self.goal.bound else "no"

    def cells(self) -> list[str]:
        return [
            self.name,
            _figure(self.ours, self.unit),
            _figure(self.peft, self.unit),
            _number(self.ratio),
            _figure(self.floor, self.unit),
            "" if self.goal is None else str(self.goal),
            self.met,
            self.note,
        ]


def tried(name: str, make: Callable[..., Row | Iterable[Row] | None], *args: Any) -> Iterator[Row]:
    """The row or rows that ``make`` gives; in place of what it fails at, a row of this name that says why."""
    try:
        made = make(*args)
        if made is not None:
            yield from [made] if isinstance(made, Row) else made
    except Exception as error:
        traceback.print_exc()
        yield Row.of_failure(name, error)


HEAD = ["row", "ours", "PEFT", "ratio", "floor", "goal", "met", "note"]


def table(rows: Iterable[Row]) -> str:
    """The rows as one Markdown table with columns of equal width."""
    lines = [HEAD, *(row.cells() for row in rows)]
    if not any(line[-1] for line in lines[1:]):
        lines = [line[:-1] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([body[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body[1:]])


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.4f}" if abs(value) < 0.02 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _figure(value: float, unit: str) -> str:
    return "" if math.isnan(value) else f"{value:.4g} {unit}"
