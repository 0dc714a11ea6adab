"""Problems of a configuration, and the one screen on which all of them are told."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapterkit.errors import ConfigError

WIDTH = 110


@dataclass(frozen=True)
class Problem:
    """One thing to change."""

    place: str
    """The override path, ``"method.r"``; empty for the whole."""

    message: str
    """What is wrong and what could be meant instead."""

    origin: str = ""
    """Where the value was set, ``"the command line: method.r=four"``."""

    choices: str = ""
    """The names that would have been valid; told once for several problems that share it."""

    @property
    def headline(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigProblems(ConfigError):
    """Everything that is wrong with a configuration; the message has it all."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__(render(self.problems))


def render(problems: Sequence[Problem]) -> str:
    """The text of one screen."""
    count = len(problems)
    lines = [] if count == 1 else [f"{count} problems in the configuration"]
    indent = "" if count == 1 else "  "
    told = set()
    for problem in problems:
        lines.append(textwrap.indent(problem.headline, indent))
        if problem.origin:
            lines.append(f"{indent}    set by {problem.origin}")
        if problem.choices and problem.choices not in told:
            told.add(problem.choices)
            lines.append(wrapped(problem.choices, indent=f"{indent}    "))
    return "\n".join(lines)


def wrapped(text: str, *, indent: str) -> str:
    """``text`` in lines that fit the screen."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
