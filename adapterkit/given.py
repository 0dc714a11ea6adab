"""What is given to the public functions, checked before anything is done: an argument of another type than is wanted is
an error that names it, rather than one of Python's from further inside."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from adapterkit.errors import ArgumentError

SAVED = "a directory, or the name of a repository on the Hub"
DIRECTORY = "a directory"


def misfit(argument: str, given: object, wanted: str) -> ArgumentError:
    """``adapter_name: a name is wanted, not 3 (int)``."""
    return ArgumentError(f"{argument}: {wanted} is wanted, not {_shown(given)}")


def _shown(given: object) -> str:
    """What was given, in a few words: large things by their class alone."""
    kind = type(given)
    if given is None:
        return "None"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    if isinstance(given, str | bytes | int | float | list | tuple | set | dict):
        return f"{reprlib.repr(given)} ({kind.__name__})"
    return f"an instance of {kind.__module__}.{kind.__qualname__}"


def check_name(given: object, argument: str = "adapter_name") -> None:
    """
    Raises:
        ArgumentError: this is no adapter's name: no string, or an empty one.
    """
    if not isinstance(given, str) or not given:
        raise misfit(argument, given, "a name")


def names_of(
    given: Any, argument: str = "adapter_name", wanted: str = "the name of an adapter, or a list of names,"
) -> tuple[str, ...]:
    """The names that a name, or several in any collection, stand for.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(given, str):
        return (given,)
    try:
        names = tuple(given)
    except TypeError:
        names = (None,)
    if not all(isinstance(name, str) for name in names):
        raise misfit(argument, given, wanted)
    return names


def check_path(given: object, argument: str, wanted: str = SAVED) -> None:
    """
    Raises:
        ArgumentError: this is neither a string nor a path.
    """
    if not isinstance(given, str | PathLike):
        raise misfit(argument, given, wanted)


def check_mapping(given: object, argument: str, wanted: str) -> None:
    """
    Raises:
        ArgumentError: this is no mapping, or one whose keys are not strings.
    """
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise misfit(argument, given, wanted)


def check_callable(given: object, argument: str) -> None:
    """
    Raises:
        ArgumentError: this cannot be called.
    """
    if not callable(given):
        raise misfit(argument, given, "a function")


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def check_number(given: object, argument: str) -> None:
    """
    Raises:
        ArgumentError: this is no number, or not a finite one.
    """
    if not _is_number(given):
        raise misfit(argument, given, "a number")


def numbers_of(given: Any, argument: str) -> list[float]:
    """The numbers in a collection, which may be a tensor or hold numbers of other libraries.

    Raises:
        ArgumentError: there is something else in it, or a number that is not finite.
    """
    found: list[Any] = [*given] if isinstance(given, Iterable) else [None]
    found = [each.item() if getattr(each, "ndim", None) == 0 else each for each in found]
    if not all(map(_is_number, found)):
        raise misfit(argument, given, "a list of numbers")
    return found
