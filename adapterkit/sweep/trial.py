"""What a trial leaves in its directory, and reading it back.

``trial.json`` has its number and overrides, written first; ``summary.json`` is the run's own, or says why there is
none. Where a run of an earlier sweep lies in the directory, which stays as it is until another is about to train,
``trial.json`` says it, and has the summary of a run that a resumed trial went on with elsewhere, or found to have
ended.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterkit.files import write_text

RECORD, SUMMARY, TRACE = "trial.json", "summary.json", "error.txt"
SWEEP = "ADAPTERKIT_SWEEP"
"""The environment variable that tells the trials of a sweep from those of an earlier one in its directory."""


@dataclass
class Trial:
    """One run of a sweep."""

    directory: Path
    number: int
    overrides: Sequence[str]
    """As passed on by Hydra, ``["method=lora", "++method.r=4"]``."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The content of ``summary.json``; of a run that the sweep did not write, its ``directory``, too."""

    @property
    def values(self) -> dict[str, str]:
        """Keys to what they were set to, ``{"method.r": "4"}``."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs}

    @property
    def status(self) -> str:
        """``ok``, ``failed``, ``skipped``, or ``interrupted`` where the trial did not come to an end."""
        return str(self.summary.get("status", "interrupted"))

    @property
    def failed(self) -> bool:
        return self.status != "ok"

    def metric(self, name: str) -> float:
        """A metric's value; NaN where there is none."""
        value = self.summary.get("metrics", {}).get(name)
        return float(value) if isinstance(value, int | float) else math.nan

    def begin(self) -> None:
        """Leave the record of what is about to run."""
        for name in (RECORD, TRACE):
            (self.directory / name).unlink(missing_ok=True)
        self._record(sweep=os.environ.get(SWEEP), before=_written(self.directory / SUMMARY))

    def keep(self, summary: Mapping[str, Any]) -> None:
        """Record how a run ended that this sweep has not written here: it is elsewhere, or had ended before."""
        if Path(summary["directory"]).resolve() != self.directory.resolve() or self._is_as_before():
            self._record(summary=dict(summary))

    def end(self, status: str, error: str) -> None:
        """Say how a trial ended that did not come to the end of its run; what it had written is kept."""
        if self._is_as_before():
            self._record(status=status, error=error)
        else:
            summary = {**_read(self.directory / SUMMARY), "status": status, "error": error}
            write_text(self.directory / SUMMARY, json.dumps(summary, indent=2))

    def _is_as_before(self) -> bool:
        """Whether the summary in the directory is of an earlier sweep."""
        before = _read(self.directory / RECORD).get("before")
        return before is not None and before == _written(self.directory / SUMMARY)

    def _record(self, **entries: Any) -> None:
        record = {"number": self.number, "overrides": list(self.overrides), **_read(self.directory / RECORD), **entries}
        write_text(self.directory / RECORD, json.dumps(record, indent=2))


def read_trials(directory: Path, *, sweep: str | None = None) -> list[Trial]:
    """The trials that were begun below a directory, by number; of ``sweep`` alone, if it is given."""
    records = (path for path in directory.rglob(RECORD) if sweep is None or _sweep_of(path) in (sweep, None))
    return sorted(map(_trial, records), key=lambda trial: trial.number)


def _sweep_of(record: Path) -> str | None:
    """Which sweep a trial was begun by; None where a launcher has not handed it on."""
    return _read(record).get("sweep")


def _trial(path: Path) -> Trial:
    record, directory = _read(path), path.parent
    told: dict[str, Any] = {key: record[key] for key in ("status", "error") if key in record}
    if "summary" in record:
        return Trial(directory, record["number"], record["overrides"], record["summary"])
    is_old = record.get("before") is not None and record["before"] == _written(directory / SUMMARY)
    return Trial(directory, record["number"], record["overrides"], told if is_old else _read(directory / SUMMARY))


def failed_before(trial: Trial) -> bool:
    """Whether a trial beside this one, of a lower number, has failed."""
    records = trial.directory.parent.glob(f"*/{RECORD}")
    others = (_trial(path) for path in records if _sweep_of(path) == os.environ.get(SWEEP))
    return any(other.status == "failed" and other.number < trial.number for other in others)


def _written(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def metric_value(summary: Mapping[str, Any], name: str | None) -> float | None:
    """The metric by which a run is judged: ``name``, or the summary's own; None where it has none."""
    value = summary.get("metrics", {}).get(name or summary.get("metric"))
    return float(value) if isinstance(value, int | float) else None


def outcome(summary: Mapping[str, Any], name: str | None) -> str:
    """How a run ended, in a line: ``"accuracy 0.9633 in 12.3 s"``."""
    chosen, value = name or summary.get("metric"), metric_value(summary, name)
    result = "done" if value is None else f"{chosen} {value:.4g}"
    return f"{result} in {summary['seconds']:.1f} s" if "seconds" in summary else result


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
