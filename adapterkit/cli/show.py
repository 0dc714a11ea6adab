"""``show``: every field of a method, a task or a section of the configuration; or a preset as it is written."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adapterkit.architectures import ARCHITECTURES
from adapterkit.config.base import PeftConfig
from adapterkit.config.choices import BUILTIN_PREFIX
from adapterkit.errors import EXIT_OK, ConfigError, did_you_mean
from adapterkit.hydra.places import Preset, presets
from adapterkit.registry import KINDS, tasks

WIDTH = 110


def show(arguments: Sequence[str]) -> int:
    """``show method lora``, ``show method=dora``, ``show trainer``.

    Raises:
        ConfigError: there is nothing of that name.
    """
    words = [word.lstrip("+") for argument in arguments for word in argument.split("=", 1)]
    if len(words) == 1:
        print(_section(words[0]))
    elif len(words) == 2 and words[0] in KINDS and words[1] in KINDS[words[0]]:
        print(_plugin(*words))
    elif len(words) == 2:
        print(_preset(*words))
    else:
        raise ConfigError("show what? show method lora, show task seq_cls, show trainer, show method dora, ...")
    return EXIT_OK


def _plugin(kind: str, name: str) -> str:
    """A page on one method or task."""
    loaded, origin = KINDS[kind][name], KINDS[kind].plugin(name).origin
    built_on = [preset.choice for preset in presets() if preset.group == kind and _extends(preset, name)]
    parts = [f"{kind} {name}   ({origin}, {loaded.__module__}:{loaded.__name__})", inspect.getdoc(loaded) or ""]
    if kind == "method":
        parts.append(f"run it:  {_first_run(name, loaded)}")
    if built_on:
        parts.append(f"presets: {', '.join(built_on)}")
    return "\n\n".join([*parts, fields(loaded, kind)])


def _first_run(name: str, method: type[PeftConfig]) -> str:
    """The shortest command that runs a method: with what it requires, on a built-in model that has what it adapts, and
    on built-in data unless it reads columns of its own."""
    wanted = set(getattr(method, "default_roles", ()))
    families = {task: tasks[task].default_model.removeprefix(BUILTIN_PREFIX) for task in ("seq_cls", "causal_lm")}
    task = next((task for task, family in families.items() if wanted <= ARCHITECTURES[family].keys()), "<name>")
    required = [field for field, info in method.model_fields.items() if info.is_required()]
    values = {field: method.example.get(field, "...") for field in required}
    columns = [f"data.columns.{role}=<column>" for role in method.model_construct(**values).row_inputs]
    words = [f"+method={name}", f"task={task}", *(f"method.{field}={value}" for field, value in values.items())]
    return " ".join(["python -m adapterkit", *words, *(["data.path=<file>", *columns] if columns else [])])


def _extends(preset: Preset, name: str) -> bool:
    text = preset.path.read_text(encoding="utf-8")
    return any(line.strip(" -[]").split(",")[0].removeprefix("defaults: [") == name for line in text.splitlines())


def _section(name: str) -> str:
    from adapterkit.config.run import RunConfig

    sections: dict[str, Any] = {n: f.annotation for n, f in RunConfig.model_fields.items() if _is_model(f.annotation)}
    if name == "run":
        return fields(RunConfig, "")
    if name in KINDS:
        raise ConfigError(f"show which {name}? show {name} <name>\n  {name}s: {', '.join(KINDS[name])}")
    if name not in sections:
        near = did_you_mean(name, ["run", *sections, *KINDS])
        plugin = (f"; did you mean 'show {kind} {name}'?" for kind, known in KINDS.items() if name in known)
        raise ConfigError(
            f"no section {name!r}{next(plugin, near)}\n  sections: {', '.join(['run', *sections])}; "
            "or show method <name>, show task <name>"
        )
    found = [preset.choice for preset in presets() if preset.group == name]
    about = f"presets: {', '.join(found)}\n\n" if found else ""
    return f"{sections[name].__doc__}\n\n{about}{fields(sections[name], name)}"


def _preset(group: str, name: str) -> str:
    every = list(presets())
    for preset in every:
        if (preset.group, preset.name) == (group, name):
            return f"# {preset.choice}   ({preset.origin}, {preset.path})\n\n{preset.path.read_text('utf-8').strip()}"
    names = [preset.name for preset in every if preset.group == group] + list(KINDS.get(group, ()))
    if not names:
        groups = sorted({preset.group for preset in every} | KINDS.keys())
        raise ConfigError(f"no group {group!r}{did_you_mean(group, groups)}\n  groups: {', '.join(groups)}")
    raise ConfigError(f"no {group} named {name!r}{did_you_mean(name, names)}\n  {group}s: {', '.join(names)}")


def fields(model: type[BaseModel], prefix: str) -> str:
    """Every field of a config class, and of those that it may hold: override path and default, type, meaning."""
    return "\n".join(line for name, field in model.model_fields.items() for line in _field(name, field, prefix))


def _field(name: str, field: FieldInfo, prefix: str) -> Iterator[str]:
    path = f"{prefix}.{name}" if prefix else name
    default = "???   (required)" if field.is_required() else spelled(field.get_default(call_default_factory=True))
    yield f"  {path}={default}"
    constraint = "".join(f", {c}" for c in map(_constraint, field.metadata) if c)
    text = f"{type_name(field.annotation)}{constraint}. {field.description or ''}"
    yield textwrap.fill(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for held in get_args(field.annotation):
        if _is_model(held):
            yield fields(held, path)


def spelled(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, BaseModel):
        return f"{{...}}   (see show {type(value).__name__.removesuffix('Config').lower()})"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _constraint(mark: Any) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "pattern": "matching"}
    return " and ".join(
        f"{word} {getattr(mark, key)}" for key, word in words.items() if getattr(mark, key, None) is not None
    )


def type_name(annotation: Any) -> str:
    """A type in words: ``"str, list[str] or null"``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [mark for given in arguments[1:] for mark in getattr(given, "metadata", [given])]
        bounds = [c for c in map(_constraint, marks) if c]
        return " ".join([type_name(arguments[0]), *bounds])
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if annotation in (None, type(None)):
        return "null"
    if arguments and origin not in (dict, list, tuple, set):
        *first, last = dict.fromkeys(type_name(argument) for argument in arguments)
        return f"{', '.join(first)} or {last}" if first else last
    if arguments:
        return f"{origin.__name__}[{', '.join(type_name(argument) for argument in arguments)}]"
    return getattr(annotation, "__name__", str(annotation))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
