"""The configuration of a finished run, with what is said otherwise on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError, did_you_mean
from adapterkit.hydra.arguments import parse
from adapterkit.hydra.origin import Origins
from adapterkit.hydra.problems import ConfigProblems, Problem
from adapterkit.hydra.validation import check_data
from adapterkit.train import layout
from adapterkit.train.found import adapter_of, from_here, load_config

ALONE: Mapping[str, Any] = {
    "resume": None,
    "dry_run": False,
    "trainer.report_to": [],
    "trainer.deepspeed": None,
    "trainer.fsdp": None,
    "trainer.fsdp_config": None,
    "trainer.gradient_checkpointing": False,
    "trainer.gradient_checkpointing_kwargs": None,
}
"""What training had, and one process that looks at its result has not."""

PATHS = ("model.name_or_path", "model.tokenizer", "data.path", "data.train", "data.validation", "data.test")
"""What may be relative to the directory that the run was started in."""


def reconfigured(
    verb: str, run: Path, words: Sequence[str], keys: Sequence[str], fixed: Mapping[str, Any]
) -> tuple[RunConfig, set[str]]:
    """The configuration, and the keys that ``words`` set.

    Args:
        verb: for messages.
        run: the run's directory.
        words: ``key=value``.
        keys: the keys that may be set; one that ends in a dot stands for all below it.
        fixed: values for keys that ``words`` do not set.

    Raises:
        ConfigError: it is no run.
        CheckpointError: it has no adapter.
        ConfigProblems: a word cannot be read, sets another key, or gives what is not valid.
    """
    adapter_of(run, load_config(run))
    content, overrides = layout.read_config(run), _parsed(verb, words, keys)
    there = layout.read_manifest(run).get("process", {}).get("cwd", "")
    for path in PATHS:
        _change(content, path, lambda value: from_here(value, there) if isinstance(value, str) else value)
    chosen = {override.key_or_group: override.value() for override in overrides}
    for path, value in {**ALONE, **fixed, **chosen}.items():
        _change(content, path, lambda _, new=value: new)
    origins = Origins([str(override.input_line) for override in overrides], lambda: ())
    found, problems = check_data(content, origins)
    if found is None:
        raise ConfigProblems(problems)
    return found, set(chosen)


def _parsed(verb: str, words: Sequence[str], keys: Sequence[str]) -> list[Override]:
    arguments = parse(words)
    problems = list(arguments.problems)
    parser = OverridesParser.create()
    overrides = [parser.parse_override(line) for line in arguments.overrides]
    for override in overrides:
        key = override.key_or_group
        if override.is_delete() or override.is_sweep_override():
            problems.append(Problem(key, f"{verb} takes one value for a key, as {key}=value"))
        elif not any(key == known or (known.endswith(".") and key.startswith(known)) for known in keys):
            shown = [f"{known}..." if known.endswith(".") else known for known in keys]
            near = did_you_mean(key, [known for known in keys if not known.endswith(".")])
            problems.append(Problem(key, f"{verb} sets no such key{near}", choices=f"keys: {', '.join(shown)}"))
    if problems:
        raise ConfigProblems(problems)
    return overrides


def _change(content: dict[str, Any], path: str, change: Any) -> None:
    """Put ``change(value)`` in the place of a value; what is not there counts as None.

    Raises:
        ConfigError: a part of the path holds no keys.
    """
    *sections, key = path.split(".")
    node: Any = content
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{path}: {section} has no keys")
    node[key] = change(node.get(key))
