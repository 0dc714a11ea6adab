"""What can go wrong, and what the process exits with.

::

    AdapterkitError                      exit 1   a fault that is not the user's configuration
    ├── ConfigError (ValueError)         exit 2   a setting cannot be honoured: the message names key, place and choices
    │   ├── ArgumentError (TypeError)             an argument is of another type than is wanted
    │   ├── UnknownPluginError (KeyError)         no method or task of that name is installed
    │   ├── BrokenPluginError                     an installed plugin cannot be imported, or breaks the contract
    │   │   └── IncompatiblePluginError           it speaks another API version
    │   ├── TargetError                           a name in target_modules, modules_to_save, ... matches no module
    │   └── DataError                             a data file, split or column is not there
    ├── CheckpointError (ValueError)     exit 1   an adapter's files do not fit the model, or cannot be read
    ├── StateError (RuntimeError)        exit 1   not possible now: merged already, unknown adapter, ...
    ├── CapabilityError (TypeError)      exit 1   not possible for this method or layer: says which
    ├── TrainingError (RuntimeError)     exit 1   training cannot go on: the loss is NaN
    └── CheckFailedError (AssertionError) exit 4  a check of the result failed: the adapter did not move
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

EXIT_OK, EXIT_FAULT, EXIT_CONFIG, EXIT_TRIALS, EXIT_CHECK, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


class AdapterkitError(Exception):
    """Root of every error raised on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = EXIT_FAULT


class ConfigError(AdapterkitError, ValueError):
    """A setting that cannot be honoured."""

    exit_code = EXIT_CONFIG


class ArgumentError(ConfigError, TypeError):
    """An argument of another type than is wanted; names it, what was given and what is wanted."""


class UnknownPluginError(ConfigError, KeyError):
    """Nothing of that name is installed. A `KeyError`, so that `in` and `.get` work on a registry."""

    def __str__(self) -> str:  # KeyError would print the repr of the sentence
        return str(self.args[0])


class BrokenPluginError(ConfigError):
    """An installed plugin that cannot be used; names distribution, version, cause and place."""


class IncompatiblePluginError(BrokenPluginError):
    """An installed plugin that was written for another version of the plugin API."""


class TargetError(ConfigError):
    """A stated module name matches nothing in the model.

    Args:
        message: what is wrong.
        field: the field of the config in which it is stated.
        entries: the names or patterns in it that match nothing.
    """

    def __init__(self, message: str, field: str = "", entries: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.field, self.entries = field, tuple(entries)


class DataError(ConfigError):
    """A data file, split or column that is not there."""


class CheckpointError(AdapterkitError, ValueError):
    """Adapter files that do not fit the model, or cannot be read."""


class StateError(AdapterkitError, RuntimeError):
    """An operation that the model's present state does not allow."""


class CapabilityError(AdapterkitError, TypeError):
    """An operation that a method or a kind of layer cannot do."""


class TrainingError(AdapterkitError, RuntimeError):
    """Training that cannot go on."""


class CheckFailedError(AdapterkitError, AssertionError):
    """A check of the result that failed."""

    exit_code = EXIT_CHECK


def first_line(error: BaseException | None) -> str:
    """The first line that an error says, or its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that was probably meant by ``word``, or None: by spelling, then by containment."""
    options = list(choices)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return close[0]
    plain = word.replace("_", "").replace("-", "").lower()
    for option in options:
        other = option.replace("_", "").lower()
        if plain == other or (len(plain) >= 3 and (plain in other or (len(other) >= 3 and other in plain))):
            return option
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.45)
    return close[0] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing."""
    near = nearest(word, choices)
    return f"; did you mean {near!r}?" if near else ""


def of_choices(word: str, choices: Iterable[str], what: str = "Choices:") -> str:
    """``"; did you mean 'x'? Choices: x, y"``, or after a full stop the choices alone."""
    options = list(choices)
    return f"{did_you_mean(word, options) or '.'} {what} {', '.join(options) or 'none'}"
