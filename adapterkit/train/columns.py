"""Which column of the data plays which role in a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from datasets import Dataset

from adapterkit.errors import DataError, did_you_mean


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
    for role, column in chosen.items():
        if role not in roles.default:
            near, choices = did_you_mean(role, roles.default), ", ".join(roles.default)
            raise DataError(f"data.columns.{role}: this task has no such role{near} Roles: {choices}")
        if column not in there:
            raise DataError(
                f"data.columns.{role}={column}: {source} has no such column{did_you_mean(column, there)} "
                f"Columns: {', '.join(there)}"
            )
    found = {**_by_position(roles, there), **_by_name(roles, there), **chosen}
    for role in roles.required:
        if role not in found:
            raise DataError(
                f"{source}: no column for {role!r}{did_you_mean(role, there)} Set data.columns.{role}=<column>. "
                f"Columns: {', '.join(there)}"
            )
    names = _renamed(found)
    return split.select_columns(list(names)).rename_columns(names)


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
