"""Which run, or which saved adapter, a directory is. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from adapterkit.config.base import CONFIG_NAME, PeftConfig
from adapterkit.config.run import RunConfig, run_config
from adapterkit.config.strict import summarize
from adapterkit.config.task import TaskConfig
from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.registry import methods, tasks
from adapterkit.train import layout


class Found(NamedTuple):
    """Where an adapter is, and what it is."""

    folder: Path
    config: PeftConfig
    run: Path | None
    """The run that it belongs to."""
    settings: RunConfig | None
    """Those of the run."""


def load_config(run: str | Path) -> RunConfig:
    """The configuration of a run.

    Args:
        run: the run's directory.

    Raises:
        ConfigError: it is no run, or its configuration is not valid here.
    """
    try:
        content = layout.read_config(Path(run))
        method: type[PeftConfig] = methods[content["method"]["peft_type"].lower()]
        task: type[TaskConfig] = tasks[content["task"]["name"]]
        return run_config(method, task).model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{run}/{layout.CONFIG}: {summarize(error)}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{run} is not the directory of a run: {error}") from error


def from_here(path: str, directory: str) -> str:
    """A path that was relative to a directory, where it is not here but there."""
    there = Path(directory, path)
    return str(there) if not Path(path).exists() and there.exists() else path


def adapter_of(run: str | Path, config: RunConfig) -> Path:
    """The directory of the adapter that a run trained.

    Raises:
        CheckpointError: the run has none.
    """
    folder = layout.adapter_folder(Path(run) / layout.ADAPTER, config.adapter_name)
    if not folder.is_dir():
        status = layout.read_manifest(Path(run)).get("status", "unknown")
        raise CheckpointError(f"{run} has no adapter: {'a dry run' if config.dry_run else f'its status is {status}'}")
    return folder


def find(directory: Path) -> Found:
    """The adapter that a directory means: its own, or that of the run which it is.

    Raises:
        ConfigError: there is neither, or the config of one is not valid.
        CheckpointError: the run has no adapter.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory (from {Path.cwd()})")
    if (directory / CONFIG_NAME).is_file():
        run = _run_around(directory)
        settings = None if run is None else load_config(run)
        return Found(directory, PeftConfig.from_pretrained(directory), run, settings)
    if (directory / layout.CONFIG).is_file():
        settings = load_config(directory)
        folder = adapter_of(directory, settings)
        return Found(folder, PeftConfig.from_pretrained(folder), directory, settings)
    inside = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}"))
    if len(inside) == 1:
        return find(directory / inside[0])
    there = f"; it holds several: {', '.join(inside)}" if inside else ""
    raise ConfigError(
        f"{directory} is neither an adapter's directory ({CONFIG_NAME}) nor a run's ({layout.CONFIG}){there}"
    )


def _run_around(folder: Path) -> Path | None:
    """The run whose adapter, or checkpoint, a directory is."""
    for inside in (folder.resolve(), *folder.resolve().parents[:1]):
        run = inside.parent if inside.name == layout.ADAPTER else inside.parent.parent
        kept = inside.name == layout.ADAPTER or inside.parent.name == layout.CHECKPOINTS
        if kept and (run / layout.CONFIG).is_file() and (run / layout.MANIFEST).is_file():
            return run
    return None
