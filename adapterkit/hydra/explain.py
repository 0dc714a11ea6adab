"""Pydantic's errors, told in the words of the command line: override paths, near matches, choices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adapterkit.errors import did_you_mean, nearest
from adapterkit.hydra.problems import Problem

Where = Callable[[str], str]
"""Override path to where it was set, or to nothing."""

LONG = 120
"""Characters beyond which choices are told on lines of their own."""

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")

NONE_HINT = "the null value is spelled null"


def explain(error: ValidationError, schema: type[BaseModel], where: Where) -> list[Problem]:
    """One problem for each place in ``error``, in its order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for details in error.errors(include_url=False):
        place, message, choices = _unknown_key(details, schema) if _is_unknown(details) else _bad_value(details, schema)
        found.setdefault(place, []).append((message, choices))
    return [
        Problem(place, "; or ".join(dict.fromkeys(m for m, _ in told)), where(place), told[0][1])
        for place, told in found.items()
    ]


def dotted(parts: Iterable[Any]) -> str:
    """``("method", "layers", 0)`` to ``"method.layers[0]"``; keys that are no words stand in brackets, too."""
    text = ""
    for part in parts:
        word = isinstance(part, str) and (part.isidentifier() or not text)
        text += (f".{part}" if text else str(part)) if word else f"[{part!r}]"
    return text


def _is_unknown(details: ErrorDetails) -> bool:
    return details["type"] == "extra_forbidden"


def _unknown_key(details: ErrorDetails, schema: type[BaseModel]) -> tuple[str, str, str]:
    *section, key = _steps(schema, details["loc"])
    keys = list(_fields(schema, section))
    meant = _meant(str(key), section, schema)
    choices = f"keys of {dotted(section)}: " if section else "top-level keys: "
    return dotted((*section, key)), f"unknown key{meant}", choices + ", ".join(keys)


def _meant(key: str, section: list[Any], schema: type[BaseModel]) -> str:
    """The hint: the same key elsewhere, a near match here, or a near match anywhere."""
    everywhere = {path.rpartition(".")[2]: path for path in _paths(schema)}
    here = nearest(key, _fields(schema, section))
    if key in everywhere:
        return f"; did you mean {everywhere[key]!r}?"
    if here:
        return f"; did you mean {dotted((*section, here))!r}?"
    far = nearest(key, everywhere) if len(key) > 3 else None
    return f"; did you mean {everywhere[far]!r}?" if far else ""


def _paths(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        for model in _models(field.annotation):
            yield from _paths(model, f"{prefix}{name}.")


def _fields(schema: type[BaseModel], section: Iterable[Any]) -> dict[str, Any]:
    models = [schema]
    for part in section:
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        models = _models(fields[part].annotation) if part in fields else []
    return {name: field for model in models for name, field in model.model_fields.items()}


def _bad_value(details: ErrorDetails, schema: type[BaseModel]) -> tuple[str, str, str]:
    place = dotted(_steps(schema, details["loc"]))
    if details["type"] == "missing":
        return place, required(place), ""
    value, choices = details["input"], ""
    message = details["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if details["type"] == "literal_error" and len(message) > LONG:
        message, choices = "no such choice", f"choices of {place}: {', '.join(_expected(details))}"
    if not isinstance(value, dict | list):
        message += f" (got {spelled(value, kind=details['type'].endswith(('_type', '_parsing')))})"
    return place, message + _hint(details, place), choices


def required(place: str) -> str:
    """What is said of a key that has neither a default nor a value."""
    return f"required, and no value is given: {place}=..."


def spelled(value: Any, *, kind: bool) -> str:
    """A value as it is written on the command line and, where it matters, its kind: ``true, a bool``."""
    if isinstance(value, str):
        return repr(value)
    article = "an" if type(value) is int else "a"
    return json.dumps(value, default=str) + (f", {article} {type(value).__name__}" if kind else "")


def _hint(details: ErrorDetails, place: str) -> str:
    value, kind = details["input"], details["type"]
    if value == "None" and "null" not in details["msg"]:
        return f"; {NONE_HINT}"
    if kind == "literal_error" and isinstance(value, str):
        return did_you_mean(value, _expected(details))
    if kind == "string_type" and isinstance(value, int | float):
        return f"; to pass digits as text, quote twice: \"{place}='...'\""
    if kind in ("int_type", "float_type") and isinstance(value, str) and _NUMBER.fullmatch(value):
        return "; this is text: leave its quotes out, or read an environment variable by '${oc.decode:${oc.env:NAME}}'"
    if kind == "list_type" and isinstance(value, str):
        return f"; a list of one: {place}=[{value}]"
    if isinstance(value, dict) and kind in ("int_type", "float_type"):
        parent, _, key = place.rpartition(".")
        while isinstance(value, dict) and value:
            step, value = next(iter(value.items()))
            key = f"{key}.{step}"
        return f"; to write a key with dots: {parent}={{{key}:{value}}}"
    return ""


def _expected(details: ErrorDetails) -> list[str]:
    """The choices that an error of a `Literal` names."""
    return re.findall(r"'([^']*)'", details["ctx"]["expected"])


def _steps(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[Any]:
    """``loc`` without the labels that Pydantic adds for the branches of a union."""
    annotation: Any = schema
    steps: list[Any] = []
    labelled = False
    for part in loc:
        branches = list(_branches(annotation))
        if len(branches) > 1 and not labelled:
            labelled = True
            continue
        if not branches:
            break
        steps.append(part)
        annotation, labelled = _inside(branches, part), False
    return steps


def _inside(branches: list[Any], part: int | str) -> Any:
    """The annotation of what ``part`` names within any of ``branches``; None where nothing is known."""
    for branch in branches:
        arguments = get_args(branch)
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            field = branch.model_fields.get(str(part))
            return field.annotation if field else Any
        if get_origin(branch) is dict:
            return arguments[1]
        if get_origin(branch) in (list, tuple) and isinstance(part, int):
            return arguments[0]
    return None


def _branches(annotation: Any) -> Iterator[Any]:
    """The members of a union without None; `Annotated` is looked through. Nothing for None."""
    if annotation in (None, NoneType):
        return
    if get_origin(annotation) is Annotated:
        yield from _branches(get_args(annotation)[0])
    elif get_args(annotation) and get_origin(annotation) not in (dict, list, tuple, set, Literal):
        for member in get_args(annotation):
            yield from _branches(member)
    else:
        yield annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [b for b in _branches(annotation) if isinstance(b, type) and issubclass(b, BaseModel)]
