"""A composed config as a validated `RunConfig`, or everything that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from adapterkit.config.run import RunConfig, run_config
from adapterkit.errors import ConfigError, first_line
from adapterkit.hydra.disk import absent
from adapterkit.hydra.explain import NONE_HINT, Where, dotted, explain, required
from adapterkit.hydra.nodes import MISSING, plain
from adapterkit.hydra.problems import ConfigProblems, Problem
from adapterkit.registry import DISCRIMINATOR, KINDS


def nowhere(path: str) -> str:
    """A `Where` that knows of nothing."""
    return ""


def validate(config: DictConfig, where: Where = nowhere) -> RunConfig:
    """The run configuration that ``config`` describes.

    Validation is strict JSON: ``true`` is no 1 and ``"8"`` no 8, while lists may become tuples.

    Raises:
        ConfigProblems: all that is wrong, each with its override path and where it was set.
    """
    found, problems = check(config, where)
    if found is None:
        raise ConfigProblems(problems)
    return found


def check(
    config: DictConfig, where: Where = nowhere, *, known: Collection[str] = ()
) -> tuple[RunConfig | None, list[Problem]]:
    """The run configuration, or None and what is wrong.

    Args:
        config: as composed, with or without Hydra's own node.
        where: tells where a path was set.
        known: kinds (``"method"``) whose absence was told already.
    """
    try:
        data = plain(config)
    except OmegaConfBaseException as error:
        return None, [Problem(error.full_key or "", first_line(error), where(error.full_key or ""))]
    return check_data(data, where, known=known)


def check_data(
    data: dict[str, Any], where: Where = nowhere, *, known: Collection[str] = ()
) -> tuple[RunConfig | None, list[Problem]]:
    """The same for plain data, which is changed: what has no value is dropped from it. Files it names must exist."""
    problems = [Problem(path, required(path), where(path)) for path in _drop_missing(data)]
    classes: dict[str, Any] = {}
    for kind in KINDS:
        classes[kind], problem = _chosen(data, kind, where)
        if problem and kind not in known:
            problems.append(problem)
    problems += [*_misspelt_nulls(data, where), *absent(data, where)]
    schema = run_config(classes["method"], classes["task"])
    try:
        result = schema.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        told = {problem.place for problem in problems}
        return None, problems + [problem for problem in explain(error, schema, where) if problem.place not in told]
    return (None, problems) if problems or known else (result, [])


def _drop_missing(data: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Remove every key without a value, so that Pydantic finds it missing; their paths."""
    for key in list(data):
        if data[key] == MISSING:
            del data[key]
            yield dotted((*path, key))
        elif isinstance(data[key], dict):
            yield from _drop_missing(data[key], (*path, key))


def _chosen(data: dict[str, Any], kind: str, where: Where) -> tuple[Any, Problem | None]:
    """The config class of the chosen plugin; where there is none, `Any` and why.

    A name qualified by its distribution (``acme/LORA``) is reduced to the plugin's own in ``data``.
    """
    node, key = data.get(kind), DISCRIMINATOR[kind]
    if not isinstance(node, dict) or not isinstance(node.get(key), str):
        data[kind] = None
        return Any, _none_chosen(kind, node)
    distribution, _, name = node[key].rpartition("/")
    data[kind] = {**node, key: name}
    qualified = f"{distribution}/{name.lower()}" if distribution else name.lower()
    try:
        return KINDS[kind][qualified], None
    except ConfigError as error:
        data[kind] = None
        return Any, Problem(f"{kind}.{key}", str(error), where(f"{kind}.{key}"))


def _none_chosen(kind: str, node: Any) -> Problem:
    """Nothing was chosen; or a file of keys was that extends no plugin's defaults."""
    message = f"no {kind} chosen: pass {kind}=<name>"
    if node:
        message += f", or begin the preset with 'defaults: [<{kind}>, _self_]'"
    return Problem("", message, choices=f"{kind}s: {', '.join(KINDS[kind])}")


def _misspelt_nulls(data: Any, where: Where, path: tuple[Any, ...] = ()) -> Iterator[Problem]:
    if data == "None":
        place = dotted(path)
        yield Problem(place, f"{NONE_HINT} (got 'None')", where(place))
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _misspelt_nulls(value, where, (*path, key))
