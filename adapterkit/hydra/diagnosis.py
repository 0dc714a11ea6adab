"""What Hydra would not compose, as problems: one pass finds them all."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adapterkit.errors import ConfigError, did_you_mean
from adapterkit.hydra.arguments import Arguments
from adapterkit.hydra.origin import Origins
from adapterkit.hydra.places import conf_dir
from adapterkit.hydra.private import Composer
from adapterkit.hydra.problems import Problem
from adapterkit.hydra.source import install
from adapterkit.hydra.validation import check
from adapterkit.registry import KINDS

EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
"""Launchers of Hydra to the extras of this package that install them."""


def composer_for(arguments: Arguments) -> Composer:
    """A composer over everything that a command line can name."""
    install()
    values = arguments.values
    return Composer.create(conf_dir(), values.get("config_dir"), values.get("config_name"))


def diagnose(arguments: Arguments) -> list[Problem]:
    """Everything that is wrong with a command line; of each sweep, the first trial is looked at."""
    composer = composer_for(arguments)
    problems = list(arguments.problems)
    overrides = [_first_of_sweep(o, problems, arguments) for o in composer.parse(arguments.overrides)]
    known: set[str] = {kind for kind in KINDS if any(problem.place == kind for problem in problems)}
    while True:
        try:
            config = composer.compose(overrides)
            break
        except (ConfigError, CompactHydraException, OmegaConfBaseException) as error:
            culprit = _culprit(error, overrides, composer)
            problems.append(_problem(error, culprit, composer))
            if culprit is None:
                return problems
            overrides.remove(culprit)
            known.add(culprit.partition("=")[0])
    return problems + problems_of(config, composer, overrides, known=known)


def problems_of(
    config: DictConfig, composer: Composer, overrides: Sequence[str], *, known: set[str] | None = None
) -> list[Problem]:
    """What is wrong with a composed config."""
    return check(config, Origins(overrides, lambda: composer.files(overrides)), known=known or ())[1]


def _first_of_sweep(override: Override, problems: list[Problem], arguments: Arguments) -> str:
    line = str(override.input_line)
    if not override.is_sweep_override():
        return line
    key = override.get_key_element()
    if not arguments.multirun and "experiment=" not in " ".join(arguments.overrides):
        shown, value = key.lstrip("+"), line.partition("=")[2]
        problems.append(
            Problem(shown, f"several values ({value}): add -m to try each of them, or write one list: {shown}=[{value}]")
        )
    if override.is_discrete_sweep():
        return f"{key}={next(iter(override.sweep_string_iterator()))}"
    return f"{key}={override.value().start}"  # type: ignore[union-attr]  # an interval, of a search


def _culprit(error: Exception, overrides: Sequence[str], composer: Composer) -> str | None:
    """The override whose choice cannot be loaded; None where a file made the choice, or it is something else."""
    for override in reversed(overrides):
        group, _, name = override.lstrip("+").partition("=")
        if isinstance(error, MissingConfigException) and error.missing_cfg_file == f"{group}/{name}":
            return override
        if isinstance(error, ConfigError) and group in KINDS and not _loads(group, name):
            return override
    return None


def _loads(kind: str, name: str) -> bool:
    try:
        KINDS[kind][name]
    except ConfigError:
        return False
    return True


def _problem(error: Exception, culprit: str | None, composer: Composer) -> Problem:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file, culprit, composer)
    if isinstance(error, ConfigError):
        return Problem("", str(error))
    return Problem("", compact(error))


def _unknown_option(config_path: str, culprit: str | None, composer: Composer) -> Problem:
    group, _, name = culprit.lstrip("+").partition("=") if culprit else config_path.rpartition("/")
    if not group:
        return Problem("", f"there is no config named {name!r}")
    options = [option for option in composer.options(group) if "/" not in option]
    message = f"no {group} named {name!r}{did_you_mean(name, options)}"
    if group == "hydra/launcher" and name in EXTRAS:
        message = f"the launcher {name!r} is not installed: pip install 'adapterkit[{EXTRAS[name]}]'"
    elif group == "model" and "/" in name:
        message = f"no preset of that name; for a model on the Hub or on disk: model.name_or_path={name}"
    place = group if culprit else f"{group} (chosen by a file)"
    installed = list(KINDS[group]) if group in KINDS else []
    presets = [option for option in options if option not in installed]
    choices = [f"{group}s: {', '.join(installed)}"] if installed else []
    choices += [f"presets: {', '.join(presets)}"] if presets else []
    return Problem(place, message, choices="; ".join(choices))


def compact(error: BaseException) -> str:
    """Hydra's own words, with those of its cause."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    parts = [str(part).strip() for part in (error, cause) if part is not None]
    return "\n".join(part for part in parts if part)
