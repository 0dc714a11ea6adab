"""Command lines of verbs that take flags of their own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from adapterkit.errors import ConfigError, did_you_mean


def taken(
    parser: ArgumentParser, arguments: Sequence[str], *, beside: Sequence[str] = ()
) -> tuple[Namespace, list[str]]:
    """What a verb's flags say, and the words that are left.

    Args:
        parser: knows the verb's flags.
        arguments: the command line after the verb.
        beside: flags that stay among the words.

    Raises:
        ConfigError: there is no such flag.
    """
    options, words = parser.parse_known_args(arguments)
    own = [flag for action in parser._actions for flag in action.option_strings]
    known = [*own, *beside]
    for name in (word.partition("=")[0] for word in words if word.startswith("-")):
        if name not in beside:
            shown = ", ".join(flag for flag in known if flag.startswith("--"))
            verb = parser.prog.removeprefix("adapterkit ")
            raise ConfigError(f"{verb} has no flag {name!r}{did_you_mean(name, known)}\n  flags: {shown}")
    return options, words


def only(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """What the flags of a verb say that takes nothing else.

    Raises:
        ConfigError: there is no such flag, or a word too many.
    """
    options, words = taken(parser, arguments)
    if words:
        verb = parser.prog.removeprefix("adapterkit ")
        raise ConfigError(f"{verb} takes no {words[0]!r}\n  {parser.format_usage().strip()}")
    return options
