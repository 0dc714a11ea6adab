"""The function that Hydra calls for a run, or for each trial of a sweep, in whatever process its launcher chooses."""

from __future__ import annotations

import math
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from adapterkit.config.run import RunConfig
from adapterkit.errors import EXIT_FAULT, AdapterkitError
from adapterkit.hydra.validation import validate
from adapterkit.sweep.trial import TRACE, Trial, failed_before, metric_value, outcome


class RunFailed(SystemExit):
    """Takes a run's error past Hydra's handlers, which would print it in their own way."""

    def __init__(self, error: Exception) -> None:
        super().__init__(exit_code(error))
        self.error = error


def execute(config: DictConfig) -> float | None:
    """Run one validated configuration; its metric, for sweepers that search. A failed trial's is NaN.

    Raises:
        RunFailed: a single run failed.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    try:
        run = validate(config)
        if hydra.mode == RunMode.MULTIRUN:
            overrides = cast(list[str], OmegaConf.to_container(hydra.overrides.task, resolve=False))
            return _execute_trial(run, Trial(directory, number=int(hydra.job.num), overrides=overrides))
        return metric_value(_train(run, directory), run.sweep.metric)
    except Exception as error:
        raise RunFailed(error) from error


def _train(run: RunConfig, directory: Path, **options: Any) -> dict[str, Any]:
    from adapterkit.train.run import run as train  # imports torch

    return train(run, directory, **options)


def _execute_trial(run: RunConfig, trial: Trial) -> float | None:
    """A trial that fails says so in its directory and leaves the others alone."""
    trial.begin()
    if run.sweep.on_failure == "stop" and failed_before(trial):
        trial.end("skipped", "an earlier trial failed, and sweep.on_failure is stop")
        return math.nan
    try:
        with _shared_parts() as lent:
            summary = _train(run, trial.directory, load=lent.load, read=lent.read, quiet=True)
    except Exception as error:
        _record(trial, error)
        return math.nan
    trial.keep(summary)
    sys.stdout.write(f"trial {trial.number}: {outcome(summary, run.sweep.metric)}\n")
    return metric_value(summary, run.sweep.metric)


def _record(trial: Trial, error: Exception) -> None:
    """One line on the terminal; everything else goes into the trial's directory."""
    said = str(error) if isinstance(error, AdapterkitError) else f"{type(error).__name__}: {error}"
    trial.end("failed", said)
    trace = trial.directory / TRACE
    trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    sys.stderr.write(f"adapterkit: trial {trial.number} failed: {said}\n")
    if not isinstance(error, AdapterkitError):
        sys.stderr.write(f"  traceback in {trace}\n")


def _shared_parts() -> AbstractContextManager[Any]:
    from adapterkit.sweep.base import pool  # imports torch

    return pool.lending()


def describe(error: BaseException) -> str:
    """An error made on purpose in its own words; any other with the frames that lie within the run."""
    if isinstance(error, AdapterkitError):
        return str(error)
    return "".join(traceback.format_exception(type(error), error, _within_run(error.__traceback__))).rstrip()


def exit_code(error: BaseException) -> int:
    """What the process returns for ``error``."""
    return error.exit_code if isinstance(error, AdapterkitError) else EXIT_FAULT


def _within_run(trace: TracebackType | None) -> TracebackType | None:
    """The traceback below `_train`; all of it if that did not take part."""
    step = trace
    while step is not None and step.tb_frame.f_code is not _train.__code__:
        step = step.tb_next
    return step.tb_next if step is not None else trace
