"""A saved config on a model that lacks some of the modules it names: the file's tensors say what the adapter is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adapterkit.config.base import PeftConfig
from adapterkit.errors import TargetError

_NEEDED = ("target_modules", "target_parameters")
"""Fields of which nothing would be left to adapt."""

Made = TypeVar("Made")
Unmatched = dict[str, list[str]]
"""Field of a config -> the names in it that match nothing."""


def made_of_what_matches(make: Callable[[PeftConfig], Made], config: PeftConfig) -> tuple[Made, Unmatched]:
    """What ``make`` makes of a config, without the names in it that match nothing, and those names.

    Raises:
        TargetError: nothing is left, or the model has too little else of what the config names.
    """
    unmatched: Unmatched = {}
    while True:
        try:
            return make(config), unmatched
        except TargetError as error:
            rest = _without(config, error.field, error.entries)
            if rest is None:
                raise
            unmatched.setdefault(error.field, []).extend(error.entries)
            config = rest


def _without(config: PeftConfig, field: str, entries: Sequence[str]) -> PeftConfig | None:
    stated: Any = getattr(config, field) if entries else None
    if isinstance(stated, dict):
        left: Any = {key: value for key, value in stated.items() if key not in entries}
    else:
        left = [entry for entry in stated or () if entry not in entries] if isinstance(stated, list) else []
    return None if not stated or (field in _NEEDED and not left) else config.model_copy(update={field: left})


def warn_of(unmatched: Unmatched, source: str | Path) -> None:
    """Say which names of a saved config were left out."""
    if unmatched:
        told = "; ".join(f"{field}: {', '.join(map(repr, names))}" for field, names in unmatched.items())
        message = f"{source}: left out of its config is what matches nothing in this model: {told}"
        warnings.warn(message, UserWarning, stacklevel=3)
