"""``validate``: everything before a run, and no run."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adapterkit.config.run import RunConfig
from adapterkit.errors import EXIT_OK, ConfigError
from adapterkit.hydra.arguments import COMPOSING, Arguments, parse, unknown_flags
from adapterkit.hydra.diagnosis import compact, composer_for, diagnose, problems_of, shadowed
from adapterkit.hydra.private import Composer, given
from adapterkit.hydra.problems import ConfigProblems, Problem
from adapterkit.hydra.sweeps import judge, settled
from adapterkit.hydra.validation import validate as validated


def validate(arguments: Sequence[str]) -> int:
    """``validate +method=lora task=seq_cls ...``, with ``-m`` for a sweep.

    Raises:
        ConfigProblems: all that is wrong.
    """
    parsed = taken(parse(arguments), COMPOSING)
    composer = composer_for(parsed)
    parsed = settled(parsed, composer)
    config = composed(parsed, composer)
    if parsed.multirun:
        _validate_sweep(config, composer)
    else:
        run = checked(config, composer)
        print(f"ok: method {run.method.peft_type.lower()}, task {run.task.name}")
    return EXIT_OK


def taken(arguments: Arguments, flags: Sequence[str]) -> Arguments:
    """The same command line, where it has none but the ``flags`` that a verb takes.

    Raises:
        ConfigProblems: it has others.
    """
    problems = unknown_flags(arguments.flags, flags)
    if problems:
        raise ConfigProblems(problems)
    return arguments


def composed(arguments: Arguments, composer: Composer) -> DictConfig:
    """The config that a command line composes.

    Raises:
        ConfigProblems: it cannot be composed.
    """
    if arguments.problems:
        raise ConfigProblems(diagnose(arguments))
    try:
        return composer.compose(arguments.overrides, sweep=arguments.multirun)
    except (CompactHydraException, OmegaConfBaseException, ConfigError) as error:
        raise ConfigProblems(diagnose(arguments) or [Problem("", compact(error))]) from error


def checked(config: DictConfig, composer: Composer) -> RunConfig:
    """The run that a composed config describes.

    Raises:
        ConfigProblems: it is not valid.
    """
    problems = problems_of(config, composer, [*given(config, "hydra"), *given(config, "task")])
    if problems:
        raise ConfigProblems(problems)
    return validated(config)


def _validate_sweep(config: DictConfig, composer: Composer) -> None:
    problems = list(shadowed(config, composer))
    verdict = judge(config, composer)
    if problems or verdict.refused:
        raise ConfigProblems([*problems, *([Problem("", str(verdict))] if verdict.refused else [])])
    of = "" if verdict.checked == verdict.total else f" ({verdict.checked} of them looked at)"
    print(f"ok: {verdict.total} trial{'s' if verdict.total > 1 else ''}{of}")
