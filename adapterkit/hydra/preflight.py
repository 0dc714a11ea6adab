"""The callback that checks a run, or every trial of a sweep, while nothing is on disk yet.

Hydra turns exceptions in callbacks into warnings, all but `SystemExit`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from adapterkit.errors import EXIT_CONFIG
from adapterkit.hydra.diagnosis import problems_of
from adapterkit.hydra.private import Composer
from adapterkit.hydra.problems import Problem, render
from adapterkit.hydra.sweeps import sweep_problems
from adapterkit.registry import KINDS



@dataclass(frozen=True)
class Sweep:
    """A sweep that was begun: what its report needs."""

    directory: Path
    metric: str | None


started_sweep: ContextVar[Sweep | None] = ContextVar("started_sweep", default=None)
"""The sweep that this process has begun."""


class Preflight(Callback):
    """Named in ``conf/config.yaml``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        stop_on(run_problems(config, Composer.running(config)))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        composer = Composer.running(config)
        stop_on([*shadowed(config), *sweep_problems(config, composer)])
        metric = OmegaConf.select(config, "sweep.metric")
        started_sweep.set(Sweep(Path(str(config.hydra.sweep.dir)), metric))


def run_problems(config: DictConfig, composer: Composer) -> list[Problem]:
    """Everything that is wrong with one composed run."""
    overrides = [*config.hydra.overrides.hydra, *config.hydra.overrides.task]
    return [*shadowed(config), *problems_of(config, composer, overrides)]


def stop_on(problems: Iterable[Problem]) -> None:
    """Print the problems, if any, and leave with the exit code of a configuration error."""
    found = list(dict.fromkeys(problems))
    if found:
        sys.stderr.write(f"adapterkit: {render(found)}\n")
        raise SystemExit(EXIT_CONFIG)


def shadowed(config: DictConfig) -> Iterator[Problem]:
    """Presets that bear the name of an installed plugin: one of the two would be ignored without a word."""
    sources = OmegaConf.select(config, "hydra.runtime.config_sources") or []
    directories = [Path(source.path) for source in sources if source.schema == "file"]
    for kind, registry in KINDS.items():
        for file in (file for directory in directories for file in sorted((directory / kind).glob("*.yaml"))):
            if file.stem in registry:
                yield Problem(
                    kind,
                    f"{file} has the name of an installed {kind}, {file.stem!r}, and one would hide the other. Rename the "
                    f"file, say {file.stem}_mine.yaml with 'defaults: [{file.stem}, _self_]', and choose "
                    f"{kind}={file.stem}_mine",
                )
