"""What Hydra would not compose, as problems: one pass finds them all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adapterkit.errors import ConfigError, did_you_mean
from adapterkit.hydra.arguments import Arguments
from adapterkit.hydra.nodes import plain
from adapterkit.hydra.origin import Origins
from adapterkit.hydra.places import conf_dir
from adapterkit.hydra.private import Composer
from adapterkit.hydra.problems import Problem
from adapterkit.hydra.source import install
from adapterkit.hydra.validation import check
from adapterkit.registry import KINDS

PRIMARY = "config"
"""Name of our primary config."""

EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
"""Launchers of Hydra to the extras of this package that install them."""


def composer_for(arguments: Arguments) -> Composer:
    """A composer over everything that a command line can name.

    Raises:
        ConfigError: a flag names no directory, or one whose ``config.yaml`` ours would hide.
    """
    install()
    values = arguments.values
    for flag in ("config_dir", "config_path"):
        if "://" not in values.get(flag, "://") and not os.path.isdir(values[flag]):
            seen = "" if os.path.isabs(values[flag]) else f" (from {os.getcwd()})"
            raise ConfigError(f"--{flag.replace('_', '-')} {values[flag]}: no such directory{seen}")
    own = Path(values.get("config_dir", ""), f"{PRIMARY}.yaml")
    if "config_dir" in values and not _chooses_another(values) and own.is_file():
        raise ConfigError(
            f"{own} would be hidden by adapterkit's own {own.name}. To run it:\n"
            f"    --config-path {own.parent} --config-name {PRIMARY}\n"
            f"  To use it beside adapterkit's presets, rename it:\n"
            f"    --config-dir {own.parent} --config-name <new name>"
        )
    return Composer.create(
        values.get("config_path", str(conf_dir())), values.get("config_dir"), values.get("config_name")
    )


def _chooses_another(values: Mapping[str, str]) -> bool:
    """Whether flags choose a primary config by another name, or from another directory, than ours."""
    return "config_path" in values or values.get("config_name", PRIMARY).removesuffix(".yaml") != PRIMARY


def diagnose(arguments: Arguments) -> list[Problem]:
    """Everything that is wrong with a command line; of each sweep, the first trial is looked at."""
    composer = composer_for(arguments)
    problems = list(arguments.problems)
    parsed = composer.parse(arguments.overrides)
    overrides = [_forced(_first_of_sweep(o, problems, arguments), composer) for o in parsed]
    known = {kind for kind in KINDS if any(problem.place == kind for problem in problems)}
    config = _composed(composer, overrides, problems, known, brief=arguments.is_plain_run)
    return problems if config is None else problems + problems_of(config, composer, overrides, known=known)


def _composed(
    composer: Composer, overrides: list[str], problems: list[Problem], known: set[str], *, brief: bool
) -> DictConfig | None:
    """What composes of ``overrides``, from which all others are removed. ``problems`` and ``known`` are added to."""
    while True:
        try:
            return _compose_ours(composer, overrides) if brief else composer.compose(overrides)
        except (ConfigError, CompactHydraException, OmegaConfBaseException) as error:
            culprit = culprit_of(error, overrides)
            if culprit is None and brief:
                brief = False  # perhaps a file chose something for Hydra itself
                continue
            problems.append(explain_error(error, culprit, composer))
            if culprit is None:
                return None
            overrides.remove(culprit)
            group = culprit.partition("=")[0]
            known |= KINDS.keys() if group == "experiment" else {group}


def _compose_ours(composer: Composer, overrides: Sequence[str]) -> DictConfig:
    """Without Hydra's own part, where nothing refers to it."""
    config = composer.compose_ours(overrides)
    return composer.compose(overrides) if "${hydra" in str(plain(config, resolve=False)) else config


def problems_of(
    config: DictConfig, composer: Composer, overrides: Sequence[str], *, known: Collection[str] = ()
) -> list[Problem]:
    """What is wrong with a composed run."""
    where = Origins(overrides, lambda: composer.files(overrides))
    return [*shadowed(config, composer), *check(config, where, known=known)[1]]


def shadowed(config: DictConfig, composer: Composer) -> Iterator[Problem]:
    """Presets that bear the name of an installed plugin: one of the two would be ignored without a word."""
    directories = composer.directories(config)
    for kind, registry in KINDS.items():
        for file in (file for directory in directories for file in sorted((directory / kind).glob("*.yaml"))):
            if file.stem in registry:
                yield Problem(
                    kind,
                    f"{file} has the name of an installed {kind}, {file.stem!r}, and one would hide the other. Rename "
                    f"the file, say {file.stem}_mine.yaml with 'defaults: [{file.stem}, _self_]', and choose "
                    f"{kind}={file.stem}_mine",
                )


def _forced(line: str, composer: Composer) -> str:
    """A value at the top level, known or not, as one that is set in any case."""
    key = line.partition("=")[0]
    return line if key[:1] in "+~" or "." in key or composer.is_group(key.partition("@")[0]) else f"++{line}"


def _first_of_sweep(override: Override, problems: list[Problem], arguments: Arguments) -> str:
    line = str(override.input_line)
    if not override.is_sweep_override():
        return line
    key = override.get_key_element()
    if not arguments.multirun and "experiment=" not in " ".join(arguments.overrides):
        shown, value = key.lstrip("+"), line.partition("=")[2]
        problems.append(
            Problem(
                shown, f"several values ({value}): add -m to try each of them, or write one list: {shown}=[{value}]"
            )
        )
    if override.is_discrete_sweep():
        return f"{key}={next(iter(override.sweep_string_iterator()))}"
    return f"{key}={override.value().start}"  # type: ignore[union-attr]  # an interval, of a search


def culprit_of(error: Exception, overrides: Sequence[str]) -> str | None:
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


def explain_error(error: Exception, culprit: str | None, composer: Composer) -> Problem:
    """A composition error in our words, or in Hydra's where there are no better ones."""
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
        return Problem(group, f"the launcher {name!r} is not installed: pip install 'adapterkit[{EXTRAS[name]}]'")
    if group == "model" and "/" in name:
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
