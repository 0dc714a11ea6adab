"""Values that are taken as they are meant or refused: what every configuration is checked by. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


class StrictModel(BaseModel):
    """No unknown keys, no silent conversions, checked on construction and on assignment. Imports no torch."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_assignment=True, allow_inf_nan=False, defer_build=True
    )

    only_with: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Fields that do something only where another field has a value, ``{"eps": ("coft", True)}``: true is any that is
    not false, empty or none."""

    def idle(self) -> str:
        """Which field is set and does nothing, beside what the others say; empty if there is none."""
        for field, (other, needed) in self.only_with.items():
            value, given = getattr(self, field), getattr(self, other)
            if bool(given) if needed is True else given == needed:
                continue
            if value != type(self).model_fields[field].get_default(call_default_factory=True):
                return f"{field}={value!r} would do nothing without {other}" + ("" if needed is True else f"={needed}")
        return ""


def plain_value(value: Any) -> Any:
    """The value of a member of an enumeration; anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def _no_python_none(value: Any) -> Any:
    if value == "None":
        raise ValueError("got the string 'None'; on the command line and in YAML the null value is spelled null")
    return value


def as_names(value: Any) -> Any:
    """Sets and tuples become lists, sets in a fixed order, so that files are the same on every run."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    return _no_python_none(value)


def _compiles(value: str | list[str]) -> str | list[str]:
    fault = pattern_fault(value) if isinstance(value, str) else ""
    if fault:
        raise ValueError(fault)
    return value


def pattern_fault(pattern: str) -> str:
    """Why a regular expression is none; nothing if it is one."""
    try:
        re.compile(pattern)
    except re.error as error:
        return f"not a regular expression: {error}"
    return ""


Text = Annotated[str, BeforeValidator(_no_python_none)]
"""A string that is not a misspelt null."""

Names = Annotated[list[str], BeforeValidator(as_names)]
"""A list of names; any set or tuple is taken, too."""

Pattern = Annotated[str | list[str], BeforeValidator(as_names), AfterValidator(_compiles)]
"""A list of names, or one regular expression."""

PositiveNumber = Annotated[int | float, Field(gt=0)]
"""A positive number that stays an integer if it is one, in files, too."""

Choice = BeforeValidator(plain_value)
"""Beside a `Literal`: takes a member of PEFT's enumerations as well."""


class Named(str):
    """The name of a method or a task, which has `value` and `name` as a member of PEFT's enumerations does."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The name, as a plain string."""
        return str(self)

    name = value


def summarize(error: ValidationError) -> str:
    """Every problem of a validation error, ``field: what is wrong (got ...)``; of several fields together, what is."""
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        unknown = problem["type"] == "extra_forbidden"
        what = "unknown key" if unknown else problem["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {what} (got {problem['input']!r})" if place else what)
    return "; ".join(dict.fromkeys(lines))
