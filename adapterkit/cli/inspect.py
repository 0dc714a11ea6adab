"""``inspect``: what a saved adapter is, from its config and the header of its tensors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterkit.cli.listing import columns
from adapterkit.cli.options import PLACES, Options, size
from adapterkit.config.base import PeftConfig
from adapterkit.errors import EXIT_OK, AdapterkitError
from adapterkit.ondisk.header import Entry
from adapterkit.ondisk.names import plain, with_open_numbers
from adapterkit.ondisk.reading import AdapterFiles, locate

_TOLD = frozenset({"peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "inference_mode"})
"""Fields of every config that have a line of their own, or say nothing of the adapter."""


def inspect(arguments: Sequence[str]) -> int:
    """``inspect DIR [--tensors] [--norms] [--json]``.

    Raises:
        ConfigError: there is no such adapter.
        CheckpointError: its files cannot be read.
    """
    options = Options(
        "inspect",
        "DIR [--tensors] [--norms] [--json]",
        "What a saved adapter is, from its config and the header of its tensors.",
    )
    options.add_argument("adapter", metavar="DIR", help=PLACES)
    options.add_argument("--tensors", action="store_true", help="list every tensor")
    options.add_argument("--norms", action="store_true", help="their Frobenius norms, too; reads the values, by torch")
    options.add_argument("--json", action="store_true", help="print all of it as JSON")
    given = options.read(arguments)
    files = locate(given.adapter)
    norms = _norms(files) if given.norms else {}
    facts = facts_of(files)
    if given.json:
        tensors = {key: _as_json(entry, norms.get(key)) for key, entry in files.header.tensors.items()}
        print(json.dumps({**facts, "settings": files.settings, "tensors": tensors}, indent=2))
        return EXIT_OK
    listed = _each(files, norms) if given.tensors or given.norms else _grouped(files)
    print(f"{_text(facts)}\n\n{columns(listed)}")
    return EXIT_OK


def facts_of(files: AdapterFiles) -> dict[str, Any]:
    """A saved adapter in a few words and numbers."""
    settings, tensors = files.settings, files.header.tensors
    types: dict[str, int] = defaultdict(int)
    for entry in tensors.values():
        types[entry.dtype] += entry.numel
    return {
        "directory": str(files.directory),
        "file": files.weights.name,
        "method": settings.get("peft_type"),
        "task": settings.get("task_type"),
        "base": settings.get("base_model_name_or_path"),
        "revision": settings.get("revision"),
        "base_recorded": files.base,
        "written_by": files.writer,
        **_changed(files),
        "tensors_count": len(tensors),
        "parameters": sum(types.values()),
        "parameters_by_type": dict(types),
        "bytes": sum(entry.nbytes for entry in tensors.values()),
    }


def _changed(files: AdapterFiles) -> dict[str, Any]:
    """The settings that differ from the method's defaults, and its first number: its rank, or whatever it is. All that
    have a value, where the method is not known here; and why it is not."""
    settings = {key: value for key, value in files.settings.items() if key not in _TOLD}
    try:
        config = files.config
    except AdapterkitError as error:
        return {"config": {key: value for key, value in settings.items() if value}, "config_problem": str(error)}
    usual = _defaults(type(config))
    return {"config": {key: value for key, value in settings.items() if (value or None) != (usual.get(key) or None)}}


def _defaults(kind: type[PeftConfig]) -> dict[str, Any]:
    """What is not worth a line; sizes are, whatever they are."""
    fields = kind.model_fields.items()
    numbers = {"r", *(field for field in getattr(kind, "pattern_fields", {}).values())}
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in fields
        if name not in numbers and not field.is_required()
    } | dict(kind.inert)


def _text(facts: Mapping[str, Any]) -> str:
    base = facts["base"] or "not named"
    recorded = facts["base_recorded"]
    rows = [
        ("adapter", facts["directory"]),
        ("method", facts["method"] or "not named"),
        ("task", facts["task"] or "none"),
        ("base", f"{base} at {facts['revision']}" if facts["revision"] else base),
        *([("made on", ", weights ".join(recorded.values()))] if recorded else []),
        ("written by", facts["written_by"]),
        *((key, value if isinstance(value, str) else json.dumps(value)) for key, value in facts["config"].items()),
        ("tensors", f"{facts['tensors_count']:,} in {facts['file']}"),
        ("parameters", _by_type(facts)),
        ("bytes", size(facts["bytes"])),
        *([("! config", facts["config_problem"])] if "config_problem" in facts else []),
    ]
    return columns(rows)


def _by_type(facts: Mapping[str, Any]) -> str:
    types = facts["parameters_by_type"]
    if len(types) == 1:
        return f"{facts['parameters']:,} of {next(iter(types))}"
    return f"{facts['parameters']:,}: {', '.join(f'{count:,} of {name}' for name, count in types.items())}"


def _grouped(files: AdapterFiles) -> list[tuple[str, ...]]:
    """Tensors of one name, but for its numbers, and one shape are a row."""
    groups: dict[tuple[str, Entry], int] = defaultdict(int)
    for key, entry in files.header.tensors.items():
        groups[with_open_numbers(plain(key)), entry] += 1
    head = ("tensors", "shape", "type", "number", "parameters")
    return [head, *((name, *_cells(e), str(n), f"{n * e.numel:,}") for (name, e), n in groups.items())]


def _each(files: AdapterFiles, norms: Mapping[str, float]) -> list[tuple[str, ...]]:
    head = ("tensor", "shape", "type", *(["norm"] if norms else []))
    return [head, *_rows(files, norms)]


def _rows(files: AdapterFiles, norms: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    for key, entry in files.header.tensors.items():
        yield (key, *_cells(entry), *([f"{norms[key]:.4g}"] if norms else []))


def _cells(entry: Entry) -> tuple[str, str]:
    return " x ".join(map(str, entry.shape)) or "one number", entry.dtype


def _norms(files: AdapterFiles) -> dict[str, float]:
    return {key: float(tensor.double().norm()) for key, tensor in files.tensors().items()}


def _as_json(entry: Entry, norm: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(entry.shape), "dtype": entry.dtype}
    return found if norm is None else {**found, "norm": norm}
