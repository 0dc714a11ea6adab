"""A sweep as Hydra describes it, checked trial by trial without composing each.

Only groups change the shape of a config: it is composed once for each combination of swept groups, and the values of
the other axes are set in copies of it. A thousand trials take two seconds this way, and a minute the other.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adapterkit.config.task import more_is_better
from adapterkit.errors import ConfigError
from adapterkit.hydra.arguments import Arguments, forced
from adapterkit.hydra.diagnosis import compact, culprit_of, explain_error
from adapterkit.hydra.nodes import plain
from adapterkit.hydra.private import Composer, apply_overrides, given
from adapterkit.hydra.problems import Problem
from adapterkit.hydra.validation import check, check_data
from adapterkit.sweep.check import LIMIT, Verdict, grid

Axes = dict[str, list[str]]
"""Keys, as written with their plus signs, to the overrides of each value."""

_OWN_PLACE = re.compile(r"hydra[.:]job\.(num|id)\b|\$\{now:")
"""What is another for each trial, in the name of its directory."""

_COMPOSED = 300
"""So many trials are composed whole at most, 20 ms each, to see where they would go."""


def sweep_problems(master: DictConfig, composer: Composer) -> list[Problem]:
    """Nothing, or one problem that tells of all trials that would fail."""
    verdict = judge(master, composer)
    return [Problem("", str(verdict))] if verdict.refused else []


def judge(master: DictConfig, composer: Composer) -> Verdict:
    """Check every trial of the sweep that ``master`` describes."""
    axes = swept(master, composer)
    groups = {key: values for key, values in axes.items() if composer.is_group(_group(key))}
    fixed = [values[0] for key, values in axes.items() if key not in groups and len(values) == 1]
    free = {key: values for key, values in axes.items() if key not in groups and len(values) > 1}
    shapes = math.prod(len(values) for values in groups.values())
    per_shape = math.prod(len(values) for values in free.values())
    verdict = Verdict(shapes * per_shape, empty=[key.lstrip("+") for key, values in axes.items() if not values])
    if verdict.empty:
        return verdict
    several = {key for key, values in groups.items() if len(values) > 1}
    for shape in grid(groups):
        shown = [choice for key, choice in zip(groups, shape, strict=True) if key in several]
        for trial, problems in _trials(master, composer, [*shape, *fixed], free, limit=max(1, LIMIT // shapes)):
            verdict.add(_shown([*shown, *trial]), problems)
    if not verdict.failing:
        verdict.fault = _twice(composer, axes) or _sharing(master, composer, axes) or _wrong_way(master, composer, axes)
    return verdict


def _twice(composer: Composer, axes: Axes) -> str:
    """Which value stands twice in an axis, so that one run would be done twice, to the same end."""
    for key, values in axes.items():
        seen: set[str] = set()
        for override in composer.parse(values) if len(values) > 1 else ():
            value = repr(override.value())
            if value in seen:
                return (
                    f"{key.lstrip('+')}: {override.get_value_element_as_str()} stands twice, and the trials would be "
                    "equal: leave one out; to run a trial again, sweep seed"
                )
            seen.add(value)
    return ""


def _sharing(master: DictConfig, composer: Composer, axes: Axes) -> str:
    """Which two trials would write into one directory, so that the second would move the first one's run away."""
    written: Any = OmegaConf.to_container(master.hydra.sweep, resolve=False)
    if _OWN_PLACE.search(str(written["subdir"])):
        return ""
    places: dict[str, str] = {}
    for trial in grid(axes, limit=_COMPOSED):
        try:
            place = str(composer.compose_trial(master, trial).hydra.sweep.subdir)
        except (ConfigError, CompactHydraException, OmegaConfBaseException):
            return ""  # only its launcher can tell
        shown = _shown([value for value, among in zip(trial, axes.values(), strict=True) if len(among) > 1])
        if place in places:
            return (
                f"hydra.sweep.subdir: two trials would write into {place!r}: {places[place]}, and {shown}. Let it name "
                "all that is swept, or add ${hydra.job.num} to it"
            )
        places[place] = shown
    return ""


def _wrong_way(master: DictConfig, composer: Composer, axes: Axes) -> str:
    """What a sweeper that searches would search for, where that is the worst trial: Optuna's minimises unless told."""
    direction: Any = OmegaConf.select(master, "hydra.sweeper.direction")
    said = str(getattr(direction, "name", direction))
    if said not in ("minimize", "maximize"):
        return ""
    try:
        config, _ = check(composer.compose_trial(master, next(grid(axes))))
    except (ConfigError, CompactHydraException, OmegaConfBaseException):
        return ""
    if config is None:
        return ""
    metric = config.sweep.metric or config.trainer.metric_for_best_model or config.task.default_metric
    metric = metric.removeprefix("eval_").removeprefix("test_")
    is_more = more_is_better(metric, config.trainer, config.task)
    wanted = "maximize" if is_more else "minimize"
    if said == wanted:
        return ""
    return (
        f"hydra.sweeper.direction={said}: of {metric} {'more' if is_more else 'less'} is better: set "
        f"hydra.sweeper.direction={wanted}, or name another sweep.metric"
    )


def _trials(
    master: DictConfig, composer: Composer, fixed: Sequence[str], free: Mapping[str, Sequence[str]], *, limit: int
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The values of each trial of one shape, and what is wrong with it."""
    try:
        shape = composer.compose_trial(master, fixed)
    except (ConfigError, CompactHydraException, OmegaConfBaseException) as error:
        told = explain_error(error, culprit_of(error, fixed), composer).headline
        yield from ((trial, [told]) for trial in grid(free, limit=limit))
        return
    axes = [composer.parse(values) for values in free.values()]
    parsed = dict(zip(chain(*free.values()), chain(*axes), strict=True))
    problems_with = _quick(shape) if _are_plain(axes, shape) else partial(_thorough, shape)
    for trial in grid(free, limit=limit):
        yield trial, problems_with([parsed[value] for value in trial])


def _thorough(shape: DictConfig, values: Sequence[Override]) -> list[str]:
    """What is wrong with one trial, its values set by Hydra and its interpolations resolved: 20 ms."""
    config = copy.deepcopy(shape)
    try:
        apply_overrides(config, values)
    except (CompactHydraException, OmegaConfBaseException) as error:
        return [compact(error)]
    return [problem.headline for problem in check(config)[1]]


def _are_plain(axes: Sequence[Sequence[Override]], shape: DictConfig) -> bool:
    """Whether setting a value of each axis is no more than that: nothing is interpolated, indexed, deleted or set
    twice."""
    values = [*chain(*axes)]
    text = json.dumps([plain(shape, resolve=False), *(str(value.input_line) for value in values)], default=str)
    is_simple = not any(value.is_delete() or "[" in value.key_or_group for value in values)
    return is_simple and "${" not in text and len({axis[0].key_or_group for axis in axes}) == len(axes)


def _quick(shape: DictConfig) -> Callable[[Sequence[Override]], list[str]]:
    """The same for values that need nobody's help: 1 ms."""
    template = json.dumps(plain(shape), default=str)

    def problems_with(values: Sequence[Override]) -> list[str]:
        data = json.loads(template)
        for value in values:
            put(data, value.key_or_group.split("."), value.value())
        return [problem.headline for problem in check_data(data)[1]]

    return problems_with


def put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested value; a dictionary is merged into one that is there, as OmegaConf does."""
    *sections, last = keys
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    if isinstance(value, dict) and isinstance(data.get(last), dict):
        for key, part in value.items():
            put(data[last], [str(key)], part)
    else:
        data[last] = value


def settled(arguments: Arguments, composer: Composer) -> Arguments:
    """The same command line with what files say about a sweep spelled out on it: ``-m``, and the axes.

    Hydra 1.4 hears of a mode on the command line only. And axes in one form can be told apart from overrides: one on
    the command line takes the place of one in a file.
    """
    if arguments.is_plain_run or not arguments.runs:
        return arguments
    try:
        config = composer.compose(arguments.overrides, sweep=True)
    except (ConfigError, CompactHydraException, OmegaConfBaseException):
        return arguments  # whoever composes it next says what is wrong
    if not (arguments.multirun or str(config.hydra.mode).endswith("MULTIRUN")):
        return arguments
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    given_keys = {override.partition("=")[0] for override in arguments.overrides}
    axes = [f"{forced(str(key))}={value}" for key, value in params.items() if forced(str(key)) not in given_keys]
    flags = arguments.flags if arguments.multirun else [*arguments.flags, "-m"]
    cleared = ["hydra.sweeper.params=null"] if params else []
    return replace(arguments, flags=flags, overrides=[*arguments.overrides, *axes, *cleared])


def swept(master: DictConfig, composer: Composer) -> Axes:
    """Every override of the sweep, as one or several values; of an interval, its two ends."""
    axes: Axes = {}
    for override in composer.parse(given(master, "task")):
        key = override.get_key_element()
        axes[key] = (
            [str(override.input_line)] if override.is_delete() else [f"{key}={value}" for value in _values(override)]
        )
    return axes


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_discrete_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    interval = override.value()
    return [str(interval.start), str(interval.end)]  # type: ignore[union-attr]


def _group(key: str) -> str:
    return key.lstrip("+~").partition("@")[0]


def _shown(overrides: Sequence[str]) -> str:
    return " ".join(override.lstrip("+") for override in overrides) or "the only one"
