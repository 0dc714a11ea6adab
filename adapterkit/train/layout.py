"""Names of the files in a run directory, and reading them back. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from adapterkit.config.base import CONFIG_NAME

CONFIG, MANIFEST, METRICS, SUMMARY, LOG = "config.yaml", "manifest.json", "metrics.jsonl", "summary.json", "run.log"
ADAPTER, CHECKPOINTS, PLOTS = "adapter", "checkpoints", "plots"
EARLIER = "earlier"
"""Folder for the runs that were in the directory before, numbered from 1; the log goes on where it is."""


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run; empty if there is none that can be read."""
    try:
        manifest: dict[str, Any] = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest


def read_summary(run: Path) -> dict[str, Any]:
    """How a run ended."""
    return json.loads((run / SUMMARY).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run, in JSON types.

    Raises:
        OSError: there is none.
        ValueError: it is not a YAML mapping.
    """
    try:
        content = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"{run / CONFIG} is no mapping")
    return content


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every entry of a run's log of metrics; a last line that was cut off is left out."""
    entries = []
    for line in (run / METRICS).read_text(encoding="utf-8").splitlines() if (run / METRICS).exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def adapter_folder(directory: Path, name: str) -> Path:
    """Where in a saved directory the files of an adapter are: in a folder of its name, or at the top."""
    return directory / name if (directory / name / CONFIG_NAME).is_file() else directory
