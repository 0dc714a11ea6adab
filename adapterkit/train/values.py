"""Values of the data that no task can use, named by file, row and column."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datasets import ClassLabel, Dataset

from adapterkit.errors import DataError
from adapterkit.train.columns import Roles

_NAMED = 5  # rows that a message lists


def check_values(split: Dataset, roles: Roles, columns: Mapping[str, str], source: str) -> None:
    """
    Args:
        split: in columns named after the task's roles.
        roles: what the columns are for.
        columns: role to column, as far as they were chosen.
        source: file and split, for messages.

    Raises:
        DataError: a text is none, a label is missing, or a number is none.
    """
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(roles.texts, (_is_text, "texts")),
        **dict.fromkeys(roles.numbers, (_is_number, "numbers")),
    }
    if roles.stratify_by is not None:
        feature = split.features.get(roles.stratify_by)
        named = isinstance(feature, ClassLabel)
        checks[roles.stratify_by] = ((lambda value: _is_label(value, named=named)), "labels")
    for role, (fits, what) in checks.items():
        if role not in split.column_names:
            continue
        wrong = [(row, value) for row, value in enumerate(split[role][:], start=1) if not fits(value)]
        if wrong:
            column = columns.get(role, role)
            whose = f"{role!r}" if column == role else f"{role!r} (column {column!r})"
            raise DataError(f"{source}: {whose} must hold {what}, but {listed(wrong)}")


def listed(wrong: list[tuple[int, Any]]) -> str:
    """Rows and their values, the first few: ``row 8 has None``."""
    shown = ", ".join(f"row {row} has {_short(value)}" for row, value in wrong[:_NAMED])
    return f"{shown}, and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else shown


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_names(names: Iterable[str], what: str, source: str) -> None:
    """
    Raises:
        DataError: two names differ by blanks around them alone.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        alike.setdefault(name.strip(), []).append(name)
    wrong = [repr(name) for group in alike.values() if len(group) > 1 for name in group]
    if wrong:
        raise DataError(f"{source}: {what} that differ only by blanks around them: {', '.join(wrong)}")


def _is_text(value: Any) -> bool:
    """Whether a value is a text, or a list of texts."""
    return all(isinstance(part, str) for part in value) if isinstance(value, list) else isinstance(value, str)


def _is_label(value: Any, *, named: bool) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return value.strip().casefold() not in ("", "nan")
    return isinstance(value, int) and not (named and value < 0)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
