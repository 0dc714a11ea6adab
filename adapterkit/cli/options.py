"""What the verbs on saved adapters share: their flags, told like the others' where one is misspelt, and sizes."""

from __future__ import annotations

import argparse
from typing import NoReturn

from typing_extensions import override

from adapterkit.errors import ConfigError, did_you_mean

PLACES = "a directory, a file in it, a run's directory, or a Hub id that is in the cache"
TASK = "with --base: whose head it has, where the adapter's config says no task (causal_lm)"


class Options(argparse.ArgumentParser):
    """The flags of one verb. A mistake is a `ConfigError`, with the nearest flag."""

    def __init__(self, verb: str, description: str, epilog: str = "") -> None:
        super().__init__(f"adapterkit {verb}", description=description, epilog=epilog, allow_abbrev=False)
        self.verb = verb

    @override
    def error(self, message: str) -> NoReturn:
        flags = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        word = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        if word.startswith("-") and word not in flags:
            raise ConfigError(
                f"{self.verb} has no flag {word!r}{did_you_mean(word, flags)}\n  flags: {', '.join(flags)}"
            )
        raise ConfigError(f"{message}\n  {self.format_usage().strip()}")


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.2f} GiB"
