"""The flags of a verb: a mistake in them is told as any other, with the nearest flag. And words that verbs share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NoReturn

from typing_extensions import override

from adapterkit.errors import ConfigError, did_you_mean

PLACES = "a directory, a file in it, a run's directory, or a Hub id that is in the cache"
RUN = "a run's directory"
TASK = "with --base: whose head it has, where the adapter's config says no task (causal_lm)"


class Options(argparse.ArgumentParser):
    """The flags of one verb, and the places that it takes.

    Args:
        verb: its name.
        usage: what follows the name, in the order in which it is usually typed; a line a way to call it.
        description: what it does.
        epilog: what to know beside the flags: exit codes, for one.
    """

    def __init__(self, verb: str, usage: str, description: str, *, epilog: str = "") -> None:
        prog = f"python -m adapterkit {verb}"
        ways = f"\n{' ' * len('usage: ')}".join(f"{prog} {way}" for way in usage.splitlines())
        super().__init__(prog, usage=ways, description=description, epilog=epilog, allow_abbrev=False)
        self.verb = verb

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """What a command line says that has nothing but flags and places.

        Raises:
            ConfigError: there is no such flag, something is missing, or a word too many.
        """
        given, words = self.read_beside_words(arguments)
        if words:
            raise ConfigError(f"{self.verb} takes no {words[0]!r}\n  {self.format_usage().strip()}")
        return given

    def read_beside_words(
        self, arguments: Sequence[str], *, others: Iterable[str] = ()
    ) -> tuple[argparse.Namespace, list[str]]:
        """The same where words such as ``key=value`` may follow; and those words.

        Args:
            arguments: the command line after the verb.
            others: flags that stay among the words.

        Raises:
            ConfigError: there is no such flag, or something is missing.
        """
        known = [*(name for action in self._actions for name in action.option_strings), *others]
        for word in takewhile(lambda word: word != "--", arguments):
            name = word.partition("=")[0]
            if re.match(r"-[^\d.]", name) and name not in known:
                flags = ", ".join(flag for flag in known if flag.startswith("--"))
                raise ConfigError(f"{self.verb} has no flag {name!r}{did_you_mean(name, known)}\n  flags: {flags}")
        return self.parse_known_args(arguments)

    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.verb}: {message}\n  {self.format_usage().strip()}")


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.2f} GiB"
