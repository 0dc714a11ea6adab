"""Where a key was set: an override, or a line of a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import yaml

from adapterkit.hydra.private import LoadedFile


class Origins:
    """Callable: override path to ``"the command line: method.r=four"`` or ``"conf/method/mine.yaml:3"``."""

    def __init__(self, overrides: Sequence[str], files: Callable[[], Iterable[LoadedFile]]) -> None:
        """Files are looked for only when a path was not set on the command line."""
        self._overrides = overrides
        self._files = files

    def __call__(self, path: str) -> str:
        return self._on_command_line(path) or self._in_a_file(path)

    def _on_command_line(self, path: str) -> str:
        """The last override of ``path`` itself, of a key below it or, as a dictionary, of a section that holds it."""
        for override in reversed(self._overrides):
            key, _, value = override.lstrip("+~").partition("=")
            around = path.startswith((f"{key}.", f"{key}[")) and value[:1] in ("{", "[")
            if path and (around or f"{key}.".startswith(f"{path}.")):
                return f"the command line: {override.lstrip('+')}"
        return ""

    @cached_property
    def _loaded(self) -> list[LoadedFile]:
        return list(self._files())

    def _in_a_file(self, path: str) -> str:
        for file in reversed(self._loaded):
            prefix = f"{file.package}." if file.package else ""
            if f"{path}.".startswith(prefix):
                line = line_of(file.path, path.removeprefix(prefix).split("."))
                if line is not None:
                    return f"{file.path}:{line}"
        return ""


def line_of(path: Path, keys: Sequence[str]) -> int | None:
    """The line, from 1, on which a YAML file sets the nested ``keys``; None where it does not."""
    node = yaml.compose(path.read_text(encoding="utf-8"))
    line = None
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = next((pair for pair in pairs if pair[0].value == key.partition("[")[0]), None)
        if match is None:
            return None
        line, node = match[0].start_mark.line + 1, match[1]
    return line
