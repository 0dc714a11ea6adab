"""The callback that checks a run, or every trial of a sweep, while nothing is on disk yet.

Hydra turns exceptions in callbacks into warnings, all but `SystemExit`.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from adapterkit import launcher
from adapterkit.errors import EXIT_CONFIG
from adapterkit.files import missing_folders
from adapterkit.hydra.diagnosis import problems_of, shadowed
from adapterkit.hydra.private import Composer, given
from adapterkit.hydra.problems import Problem, render
from adapterkit.hydra.sweeps import sweep_problems
from adapterkit.sweep.trial import SWEEP


@dataclass(frozen=True)
class Sweep:
    """A sweep that was begun: what its report needs."""

    directory: Path
    metric: str | None
    id: str
    """What its trials are told by from those of an earlier one in the directory."""


started_sweep: ContextVar[Sweep | None] = ContextVar("started_sweep", default=None)
"""The sweep that this process has begun."""

new_folders: ContextVar[tuple[Path, ...]] = ContextVar("new_folders", default=())
"""The directories that Hydra makes for a run, the innermost first."""


class Preflight(Callback):
    """Named in ``conf/config.yaml``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        composer = Composer.running(config)
        stop_on(problems_of(config, composer, [*given(config, "hydra"), *given(config, "task")]))
        new_folders.set(tuple(missing_folders(Path(str(config.hydra.run.dir)))))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        stop_on(_several_processes())
        composer = Composer.running(config)
        stop_on([*shadowed(config, composer), *sweep_problems(config, composer)])
        metric = OmegaConf.select(config, "sweep.metric")
        os.environ[SWEEP] = uuid.uuid4().hex  # launchers hand it on
        started_sweep.set(Sweep(Path(str(config.hydra.sweep.dir)), metric, os.environ[SWEEP]))


def _several_processes() -> list[Problem]:
    """What is wrong where a sweep is started by what starts one run in several processes."""
    count = launcher.count()
    if count == 1:
        return []
    text = f"a sweep (-m) takes one process, and this is one of {count} that train together (WORLD_SIZE): give each "
    return [Problem("", f"{text}trial a torchrun of its own, or leave torchrun out")]


def stop_on(problems: Iterable[Problem]) -> None:
    """Print the problems, if any, and leave with the exit code of a configuration error."""
    found = list(dict.fromkeys(problems))
    if found:
        sys.stderr.write(f"adapterkit: {render(found)}\n")
        raise SystemExit(EXIT_CONFIG)
