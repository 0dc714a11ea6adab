"""What a trial leaves in its directory, and reading it back.

``trial.json`` has its number and overrides, written first; ``summary.json`` is the run's own, or says why there is
none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterkit.files import write_text

RECORD, SUMMARY = "trial.json", "summary.json"


@dataclass
class Trial:
    """One run of a sweep."""

    directory: Path
    number: int
    overrides: Sequence[str]
    """As passed on by Hydra, ``["method=lora", "++method.r=4"]``."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The content of ``summary.json``."""

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
        record = {"number": self.number, "overrides": list(self.overrides)}
        write_text(self.directory / RECORD, json.dumps(record, indent=2))

    def end(self, status: str, error: str) -> None:
        """Say how a trial ended that did not come to the end of its run; what it had written is kept."""
        summary = {**_read(self.directory / SUMMARY), "status": status, "error": error}
        write_text(self.directory / SUMMARY, json.dumps(summary, indent=2))


def read_trials(sweep: Path) -> list[Trial]:
    """The trials that were begun below ``sweep``, by number."""
    trials = []
    for record in sweep.rglob(RECORD):
        content = _read(record)
        trials.append(Trial(record.parent, content["number"], content["overrides"], _read(record.parent / SUMMARY)))
    return sorted(trials, key=lambda trial: trial.number)


def failed_before(directory: Path) -> bool:
    """Whether a trial beside ``directory`` has failed."""
    return any(_read(path).get("status") == "failed" for path in directory.parent.glob(f"*/{SUMMARY}"))


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
