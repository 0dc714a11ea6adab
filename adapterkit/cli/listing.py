"""``list`` and ``plugins``: what is installed, and whether it works."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adapterkit.config.choices import BUILTIN_FAMILIES, BUILTIN_PREFIX
from adapterkit.errors import EXIT_FAULT, EXIT_OK, BrokenPluginError, ConfigError, IncompatiblePluginError, did_you_mean
from adapterkit.hydra.places import presets
from adapterkit.registry import CORE, KINDS, Plugin

BUILTIN_MODELS = tuple(BUILTIN_PREFIX + family for family in BUILTIN_FAMILIES)
"""Tiny models that are made from a config, as ``model.name_or_path`` takes them."""


SUMMARY = 120
"""Characters that a summary may have."""


@dataclass(frozen=True)
class State:
    """A declared plugin and how it fares."""

    plugin: Plugin
    status: str
    summary: str = ""
    problem: str = ""


def survey() -> Iterator[State]:
    """Every declared plugin, imported; a broken one hurts no other."""
    for registry in KINDS.values():
        for plugins in registry.declared.values():
            yield from (_state(plugin, plugins) for plugin in plugins)


def _state(plugin: Plugin, rivals: Sequence[Plugin]) -> State:
    try:
        loaded = plugin.load()
    except BrokenPluginError as error:
        status = "incompatible" if isinstance(error, IncompatiblePluginError) else "broken"
        return State(plugin, status, problem=str(error))
    status, problem = "ok", ""
    if len(rivals) > 1 and plugin is not rivals[0] and rivals[0].distribution == CORE:
        status = "shadowed"
        problem = f"{plugin.kind} {plugin.name!r} is adapterkit's own; choose {plugin.kind}={plugin.qualified}"
    elif len(rivals) > 1 and rivals[0].distribution != CORE:
        status = "conflict"
        names = ", ".join(rival.qualified for rival in rivals)
        problem = f"{plugin.kind} {plugin.name!r} is declared by several packages; choose one of {names}"
    return State(plugin, status, summary(loaded), problem)


def summary(loaded: type[Any]) -> str:
    """The first paragraph of a config class's docstring, up to an equation, in one line."""
    paragraph = (inspect.getdoc(loaded) or "").partition("\n\n")[0].partition(": ``")[0]
    return textwrap.shorten(paragraph, SUMMARY, placeholder=" ...")


def plugins(arguments: Sequence[str]) -> int:
    """``plugins [list]``: one line a plugin, then every problem in full.

    Raises:
        ConfigError: anything but ``list`` is asked for.
    """
    if list(arguments) not in ([], ["list"]):
        raise ConfigError(f"plugins takes no {arguments[0]!r}: plugins [list]")
    states = list(survey())
    rows = [(s.plugin.kind, s.plugin.name, s.plugin.origin, s.status, s.summary) for s in states]
    print(columns([("kind", "name", "package", "status", "summary"), *rows]))
    problems = list(dict.fromkeys(state.problem for state in states if state.problem))
    for problem in problems:
        print(f"\n! {problem}")
    return EXIT_FAULT if problems else EXIT_OK


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _installed(kind: str) -> str:
    states = [state for state in survey() if state.plugin.kind == kind]
    rows = [(s.plugin.name, s.plugin.origin, s.summary or f"({s.status}: see `plugins`)") for s in states]
    return columns([("name", "package", "summary"), *rows])


def _models() -> str:
    rows = [(f"model.name_or_path={name}", "tiny, made from a config with a fixed seed") for name in BUILTIN_MODELS]
    rows += [(f"model={preset.name}", preset.summary) for preset in presets() if preset.group == "model"]
    rows += [("model.name_or_path=...", "any model on the Hub or in a directory")]
    return columns([("choose by", "what it is"), *rows])


def _presets() -> str:
    rows = [(preset.choice, preset.origin, preset.summary) for preset in presets()]
    return columns([("choose by", "package", "what it is"), *rows])


LISTS: dict[str, Callable[[], str]] = {
    "methods": lambda: _installed("method"),
    "tasks": lambda: _installed("task"),
    "models": _models,
    "presets": _presets,
}


def show_list(arguments: Sequence[str]) -> int:
    """``list [methods|tasks|models|presets|plugins]``; without a word, all but the plugins.

    Raises:
        ConfigError: there is no such list.
    """
    if list(arguments) == ["plugins"]:
        return plugins([])
    words = list(arguments) or list(LISTS)
    for word in words:
        if word not in LISTS:
            raise ConfigError(
                f"no list of {word!r}{did_you_mean(word, LISTS)}\n  lists: {', '.join([*LISTS, 'plugins'])}"
            )
    print("\n\n".join(LISTS[word]() if len(words) == 1 else f"{word}\n\n{LISTS[word]()}" for word in words))
    return EXIT_OK
