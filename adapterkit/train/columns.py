"""Which column of the data plays which role in a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset

from adapterkit.errors import DataError, did_you_mean, of_choices


@dataclass(frozen=True)
class Roles:
    """The columns that a task reads."""

    default: Mapping[str, str]
    """Every role, in the order of columns without names, and the name its column usually has."""

    required: tuple[str, ...]
    """Roles without which nothing can be done."""

    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Role to other names that its column may have."""

    stratify_by: str | None = None
    """Role with a class: its values have equal shares in a validation split that has to be made, and a test split
    without values (null or -1) is left out."""

    group_by: str | None = None
    """Role whose equal values stay in one split."""

    texts: tuple[str, ...] = ()
    """Roles that hold texts, or lists of texts."""

    numbers: tuple[str, ...] = ()
    """Roles that hold numbers."""

    inputs: Mapping[str, int] = field(default_factory=dict)
    """Roles that the method adds (`PeftConfig.row_inputs`): integers from 0, and how many."""

    method: str = ""
    """Name of that method, for messages."""

    def beside(self, inputs: Mapping[str, int], method: str) -> Roles:
        """These, and the integers that a method takes for every row."""
        default = {**self.default, **{name: name for name in inputs}}
        return replace(self, default=default, required=(*self.required, *inputs), inputs=inputs, method=method)

    def only(self, required: Sequence[str], optional: Sequence[str]) -> Roles:
        """Those alone that these names, or a method, need."""
        kept = {*required, *optional, *self.inputs}
        return replace(
            self,
            default={role: usual for role, usual in self.default.items() if role in kept},
            required=(*required, *self.inputs),
            stratify_by=None,
            texts=tuple(role for role in self.texts if role in kept),
            numbers=tuple(role for role in self.numbers if role in kept),
        )


def assign(split: Dataset, roles: Roles, chosen: Mapping[str, str], source: str) -> Dataset:
    """The columns that play a role, under the role's name; all others are dropped.

    Args:
        split: the data as it was read.
        roles: what the task needs.
        chosen: ``data.columns``, role to column.
        source: where the data comes from, for messages.

    Raises:
        DataError: a role or a column of ``chosen`` does not exist, or a required role has no column.
    """
    there = split.column_names
    _check_chosen(roles, chosen, there, source)
    found = {**_by_position(roles, there), **_by_name(roles, there), **chosen}
    _check_required(roles, found, there, source)
    if not found:
        raise DataError(
            f"{source}: no column for any of {', '.join(roles.default)}. Set data.columns.<role>=<column>. "
            f"Columns: {', '.join(there)}"
        )
    names = _renamed(found)
    return _with_integers(split.select_columns(list(names)).rename_columns(names), roles, found, source)


def _check_chosen(roles: Roles, chosen: Mapping[str, str], there: list[str], source: str) -> None:
    for role, column in chosen.items():
        if role not in roles.default:
            choices = of_choices(role, roles.default, "Roles:")
            raise DataError(f"data.columns.{role}: this task has no such role{choices}")
        if column not in there:
            raise DataError(
                f"data.columns.{role}={column}: {source} has no such column{of_choices(column, there, 'Columns:')}"
            )


def _check_required(roles: Roles, found: Mapping[str, str], there: list[str], source: str) -> None:
    for role in roles.required:
        if role not in found:
            whose = f", which {roles.method} needs" if role in roles.inputs else ""
            near = did_you_mean(role, there) or "."
            raise DataError(
                f"{source}: no column for {role!r}{whose}{near} Set data.columns.{role}=<column>. "
                f"Columns: {', '.join(there)}"
            )


def _with_integers(named: Dataset, roles: Roles, found: Mapping[str, str], source: str) -> Dataset:
    """The columns with those that the method reads as integers."""
    for role, size in roles.inputs.items():
        values = [_integer(value) for value in named[role]]
        wrong = [index for index, value in enumerate(values) if value is None or not 0 <= value < size]
        if wrong:
            there_is = f"column {found[role]!r} has {named[role][wrong[0]]!r} in row {wrong[0]}"
            raise DataError(f"{source}: {there_is}: {roles.method} takes integers from 0 to {size - 1} as {role}")
        named = named.remove_columns(role).add_column(role, values)
    return named


def _integer(value: Any) -> int | None:
    """The integer that a value of a data file is, or writes; None if it is none."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*\d+\s*", value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _renamed(found: Mapping[str, str]) -> dict[str, str]:
    """Column to role."""
    taken: dict[str, str] = {}
    for role, column in found.items():
        if column in taken:
            raise DataError(f"data.columns: {role} and {taken[column]} are both read from column {column!r}")
        taken[column] = role
    return taken


def _by_name(roles: Roles, there: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, usual in roles.default.items():
        names = (usual, role, *roles.also.get(role, ()))
        column = next((name for name in names if name in there and name not in found.values()), None)
        if column is not None:
            found[role] = column
    return found


def _by_position(roles: Roles, there: list[str]) -> dict[str, str]:
    """Columns of a file without a header, in the order of the roles."""
    if not all(re.fullmatch(r"column\d+", name) for name in there):
        return {}
    for order in ([role for role in roles.default if role in roles.required], list(roles.default)):
        if len(there) == len(order):
            return dict(zip(order, there, strict=True))
    return {}
