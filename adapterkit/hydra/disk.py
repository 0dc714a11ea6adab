"""Files and packages that a run names, looked for before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapterkit.config.choices import LOGGERS
from adapterkit.config.run import DATA_ENDINGS
from adapterkit.hydra.explain import Where
from adapterkit.hydra.problems import Problem
from adapterkit.train.layout import CONFIG, MANIFEST

PLACES = ("data.path", "model.name_or_path", "model.tokenizer")
"""Where a configuration may name a directory or a file, or else a repository on the Hub."""

SPLITS = ("train", "validation", "test")
"""Keys of ``data`` that may name a file, beside ``data.path`` or anywhere."""


def absent(data: Mapping[str, Any], where: Where) -> Iterator[Problem]:
    """What a configuration, in plain data, says is here and is not."""
    for place in PLACES:
        value = _at(data, place)
        if isinstance(value, str) and _is_local(value) and not Path(value).expanduser().exists():
            yield Problem(place, f"{value}: no such file or directory (from {os.getcwd()})", where(place))
    for split in SPLITS:
        value = _at(data, f"data.{split}")
        if isinstance(value, str) and _is_local(value) and not _is_split(value, _at(data, "data.path")):
            place = f"data.{split}"
            yield Problem(place, f"{value}: no such file (from {os.getcwd()})", where(place))
    yield from _unusable(data, where)
    reports = _at(data, "trainer.report_to")
    for name in reports if isinstance(reports, list) else ():
        if isinstance(name, str) and name in LOGGERS and importlib.util.find_spec(name) is None:
            place = "trainer.report_to"
            yield Problem(place, f"{name} is not installed: pip install 'adapterkit[{name}]'", where(place))


def _unusable(data: Mapping[str, Any], where: Where) -> Iterator[Problem]:
    """What is there, but not what it must be."""
    resume, deepspeed = data.get("resume"), _at(data, "trainer.deepspeed")
    if isinstance(resume, str) and resume != "auto" and (lacking := _lacking(Path(resume).expanduser())):
        yield Problem("resume", f"{resume}: {lacking}", where("resume"))
    for place in ("trainer.deepspeed", "trainer.fsdp_config"):
        file = _at(data, place)
        if isinstance(file, str) and (fault := _no_object(Path(file).expanduser())):
            yield Problem(place, f"{file}: {fault}", where(place))
    if isinstance(deepspeed, str) and importlib.util.find_spec("deepspeed") is None:
        yield Problem(
            "trainer.deepspeed", "deepspeed is not installed: pip install deepspeed", where("trainer.deepspeed")
        )


def _at(data: Mapping[str, Any], place: str) -> Any:
    section, _, key = place.partition(".")
    found = data.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


def _is_local(value: str) -> bool:
    """Whether it begins as a path does, ends as a file of data does, or is deeper than ``"user/name"``."""
    begins, ends = value.startswith((".", "/", "~")), Path(value).suffix.lower() in DATA_ENDINGS
    return begins or ends or value.count("/") > 1 or "\\" in value


def _is_split(value: str, path: Any) -> bool:
    """Whether a split's file is there; true where ``data.path`` is not, as only the Hub knows its splits."""
    root = Path(path).expanduser() if isinstance(path, str) else Path()
    base = root if root.is_dir() else root.parent
    return not root.exists() or (base / value).is_file() or Path(value).expanduser().is_file()


def _lacking(run: Path) -> str:
    """Why a directory, or that of one of its checkpoints, is none of a run; nothing if it is one."""
    run = run.parent.parent if run.name.startswith("checkpoint-") else run
    if not run.is_dir():
        return f"no such directory (from {os.getcwd()})"
    missing = next((name for name in (MANIFEST, CONFIG) if not (run / name).is_file()), None)
    return f"not the directory of a run: it has no {missing}" if missing else ""


def _no_object(file: Path) -> str:
    """Why a file holds no JSON object; nothing if it does."""
    if not file.is_file():
        return f"no such file (from {os.getcwd()})"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(content, dict):
        return f"must be a JSON object, and is a {type(content).__name__}"
    return ""
