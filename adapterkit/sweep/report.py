"""What a sweep ends with: a table on the terminal, ``sweep.csv``, ``sweep.json``, a heat map of two numeric axes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterkit.config.task import less_is_better
from adapterkit.files import write_text
from adapterkit.sweep.trial import Trial, read_trials


@dataclass(frozen=True)
class Report:
    """The trials of one sweep, compared."""

    directory: Path
    trials: Sequence[Trial]
    asked: str | None = None
    """The metric that was asked for; None leaves it to the trials."""

    @cached_property
    def axes(self) -> list[str]:
        """The keys that differ between trials, in the order in which they were given."""
        keys = dict.fromkeys(key for trial in self.trials for key in trial.values)
        return [key for key in keys if len({trial.values.get(key) for trial in self.trials}) > 1]

    @cached_property
    def metric(self) -> str | None:
        """The metric that ranks the trials: what was asked for, if any has it, else their own; None without any."""
        if self.asked in self._measured:
            return self.asked
        return next((str(t.summary["metric"]) for t in self.trials if t.summary.get("metric")), None)

    @cached_property
    def greater_is_better(self) -> bool:
        """As a trial says that has the metric, or its test split's, for its own; else by the metric's name."""
        name = self.metric or ""
        own = (t.summary for t in self.trials if t.summary.get("metric") == name.removeprefix("test_"))
        told = (bool(summary["greater_is_better"]) for summary in own if "greater_is_better" in summary)
        return next(told, not less_is_better(name))

    @cached_property
    def _measured(self) -> dict[str, None]:
        return dict.fromkeys(name for trial in self.trials for name in trial.summary.get("metrics", {}))

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all metrics, the ranking one first."""
        return sorted(self._measured, key=lambda name: name != self.metric)

    @cached_property
    def overlooked(self) -> str | None:
        """The metric that was asked for, where trials have metrics but none has this one."""
        return self.asked if self._measured and self.asked not in self._measured else None

    @cached_property
    def failed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.failed]

    @cached_property
    def best(self) -> Trial | None:
        """The trial with the best metric; None where none has one."""
        name, sign = self.metric, 1 if self.greater_is_better else -1
        ranked = [t for t in self.trials if name and not t.failed and not math.isnan(t.metric(name))]
        return max(ranked, key=lambda trial: sign * trial.metric(str(name)), default=None)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a trial, the same keys in each."""
        return [self._row(trial) for trial in self.trials]

    def _row(self, trial: Trial) -> dict[str, Any]:
        summary = trial.summary
        row: dict[str, Any] = {"trial": trial.number, "status": trial.status}
        row |= {axis: trial.values.get(axis, "") for axis in self.axes}
        row |= {name: summary.get("metrics", {}).get(name) for name in self.metrics}
        row |= {key: summary.get(key) for key in ("trainable_parameters", "all_parameters", "seconds", "error")}
        return {**row, "directory": os.path.relpath(summary.get("directory", trial.directory), self.directory)}


def report(directory: Path, *, metric: str | None = None, flags: Sequence[str] = (), sweep: str | None = None) -> int:
    """Write and print the report of the sweep in ``directory``; the number of trials that failed.

    Args:
        directory: of the sweep; the trials lie below it.
        metric: ranks the trials instead of the one their summaries name.
        flags: stand before a trial's overrides in the command line that runs it again.
        sweep: which one it is, where the directory may hold trials of others.
    """
    from adapterkit.sweep.table import show

    found = Report(directory, read_trials(directory, sweep=sweep), metric)
    written = write_files(found)
    show(found, written, flags)
    return len(found.failed)


def write_files(found: Report) -> list[Path]:
    """Write ``sweep.csv``, ``sweep.json`` and the heat map where there is one; their paths."""
    from adapterkit.sweep.plot import heat_map

    rows = found.rows()
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = {
        "metric": found.metric,
        "greater_is_better": found.greater_is_better,
        "axes": found.axes,
        "best": found.best.number if found.best else None,
        "failed": [trial.number for trial in found.failed],
        "trials": rows,
    }
    csv_file, json_file = found.directory / "sweep.csv", found.directory / "sweep.json"
    write_text(csv_file, table.getvalue())
    write_text(json_file, json.dumps(content, indent=2))
    picture = heat_map(found)
    return [csv_file, json_file, *([picture] if picture else [])]
