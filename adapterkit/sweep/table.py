"""A sweep's report on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapterkit.errors import did_you_mean

if TYPE_CHECKING:
    from adapterkit.sweep.report import Report
    from adapterkit.sweep.trial import Trial

WIDTH = 120
"""Columns where the output is no terminal."""

METRICS = 4
"""So many metrics have a column."""


def show(found: Report, written: Sequence[Path], flags: Sequence[str] = ()) -> None:
    """Print the table of trials, the best one, the failures and the files."""
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else WIDTH, highlight=False, soft_wrap=not terminal)
    console.print(table(found))
    if found.overlooked is not None:
        there = ", ".join(name for name in found.metrics if not name.startswith("test_"))
        console.print(
            escape(f"no trial has sweep.metric={found.overlooked}{did_you_mean(found.overlooked, found.metrics)}")
        )
        console.print(escape(f"  ranked by {found.metric}; measured: {there}"))
    if found.best is not None:
        console.print(f"best: trial {found.best.number}: {escape(command(found.best, flags))}")
    for trial in found.failed:
        error = str(trial.summary.get("error", "it did not come to its end")).strip().splitlines()
        console.print(f"trial {trial.number} {trial.status}: {escape(error[0] if error else '')}")
    for path in written:
        console.print(f"wrote {escape(str(path))}")


def table(found: Report) -> Table:
    """One line a trial, the best one marked; metrics beyond the first few are left to the files."""
    metrics = [name for name in found.metrics if not name.startswith("test_")][:METRICS]
    drawn = Table(box=SIMPLE_HEAD)
    for header in ("trial", *short_names(found.axes), *metrics, "trainable", "seconds", "status"):
        drawn.add_column(header, justify="left" if header == "status" else "right", no_wrap=True)
    for trial in found.trials:
        cells = [str(trial.number), *(trial.values.get(axis, "") for axis in found.axes)]
        cells += [number(trial.summary.get("metrics", {}).get(name)) for name in metrics]
        cells += [trainable(trial), number(trial.summary.get("seconds"))]
        best = trial is found.best
        style = "bold green" if best else "red" if trial.failed else None
        drawn.add_row(*map(escape, cells), trial.status + (" (best)" if best else ""), style=style)
    return drawn


def short_names(axes: Sequence[str]) -> list[str]:
    """The last step of each key, where that tells it from the others."""
    last = [axis.rpartition(".")[2] for axis in axes]
    return [short if last.count(short) == 1 else axis for short, axis in zip(last, axes, strict=True)]


def trainable(trial: Trial) -> str:
    """``"12,345 (1.20%)"``."""
    count, total = trial.summary.get("trainable_parameters"), trial.summary.get("all_parameters")
    if not isinstance(count, int):
        return ""
    return f"{count:,}" + (f" ({count / total:.2%})" if total else "")


def number(value: Any) -> str:
    """Four significant digits; nothing for what is no number."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def command(trial: Trial, flags: Sequence[str] = ()) -> str:
    """The command line that runs a trial again on its own, with ``flags`` that say where its configs lie."""
    words = [quoted(word) for word in (*flags, *(override.lstrip("+") for override in trial.overrides))]
    mode = ["hydra.mode=RUN"] if any(word.startswith("experiment=") for word in words) else []
    return " ".join(["python -m adapterkit", *words, *mode])


def quoted(override: str) -> str:
    """An override as typed in a shell."""
    plain = all(c.isalnum() or c in "_-+=./:,@%" for c in override)
    return override if plain else "'" + override.replace("'", "'\\''") + "'"
