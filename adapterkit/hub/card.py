"""The model card beside an adapter: the metadata that the Hub reads, above what a person wrote."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from adapterkit.architectures import model_path
from adapterkit.errors import CheckpointError
from adapterkit.files import write_text

CARD_NAME = "README.md"
PACKAGES = ("adapterkit", "torch", "transformers")

_TEXT = """# Adapter

A {method} adapter for {base}.

```python
from adapterkit import PeftModel  # or: from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/adapter")
```
"""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_START, _END = "<!-- {} -->", "<!-- end of {} -->"


def write_card(directory: Path, model: Any, *, metrics: Mapping[str, float] | None = None) -> None:
    """Write or update ``README.md``: metadata, versions, quantisation and metrics; what a person wrote stays.

    Args:
        directory: the adapter's directory.
        model: a `PeftModel`.
        metrics: results of the run, by name.

    Raises:
        CheckpointError: the metadata of the card that is there is no YAML.
    """
    path = directory / CARD_NAME
    metadata, text = read_card(path)
    config = next(iter(model.peft_config.values()))
    base = config.base_model_name_or_path or model_path(model.get_base_model()) or ""
    metadata = {**metadata, **_metadata(model, base, metadata.get("tags") or ())}
    if metrics:
        metadata["model-index"] = _results(directory, model, metrics)
    if config.task_type == "CAUSAL_LM":
        metadata.setdefault("pipeline_tag", "text-generation")
    text = text or _TEXT.format(method=config.peft_type, base=base or "a custom model")
    for heading, lines in _sections(model, metrics).items():
        text = _with_section(text, heading, lines)
    head = yaml.dump(metadata, Dumper=_DUMPER, sort_keys=True, allow_unicode=True)
    write_text(path, f"---\n{head}---\n{text}")


def _metadata(model: Any, base: str, present: Any) -> dict[str, Any]:
    tags = [f"base_model:adapter:{base}"] if base else []
    tags += [config.peft_type.lower() for config in model.peft_config.values()]
    if type(model.get_base_model()).__module__.startswith("transformers."):
        tags.append("transformers")
    tags += getattr(model.get_base_model(), "model_tags", None) or []
    found: dict[str, Any] = {"library_name": "peft", "tags": sorted({*present, *tags})}
    return {**found, "base_model": base} if base else found


def _results(directory: Path, model: Any, metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """The Hub's ``model-index``."""
    task = {"type": (next(iter(model.peft_config.values())).task_type or "other").lower().replace("_", "-")}
    values = [{"type": name, "value": value} for name, value in metrics.items()]
    return [{"name": directory.resolve().name, "results": [{"task": task, "metrics": values}]}]


def _sections(model: Any, metrics: Mapping[str, float] | None) -> dict[str, list[str]]:
    found = {"Framework versions": [f"- {name} {_version(name)}" for name in PACKAGES]}
    quantisation = getattr(getattr(model.get_base_model(), "config", None), "quantization_config", None)
    if quantisation is not None:
        settings = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
        found["Quantisation of the base model"] = [f"- {name}: {value}" for name, value in settings.items()]
    if metrics:
        found["Results"] = [f"- {name}: {value:.6g}" for name, value in metrics.items()]
    return found


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _with_section(text: str, heading: str, lines: list[str]) -> str:
    """The text with one section of our own, between marks, put in or brought up to date."""
    start, end = _START.format(heading), _END.format(heading)
    section = "\n".join([start, f"### {heading}", "", *lines, end])
    before, found, after = text.partition(start)
    if found and end in after:
        return before + section + after.partition(end)[2]
    return f"{text.rstrip()}\n\n{section}\n"


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and text; nothing of either where there is no card.

    Raises:
        CheckpointError: the metadata is no YAML mapping.
    """
    if not path.is_file():
        return {}, ""
    content = path.read_text(encoding="utf-8")
    if not content.startswith("---\n"):
        return {}, content
    head, _, text = content[4:].partition("\n---\n")
    try:
        metadata = yaml.load(head, Loader=_LOADER) or {}
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: the metadata at the top is no YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: the metadata at the top is no mapping")
    return metadata, text
