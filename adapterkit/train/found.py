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
from adapterkit.ondisk.reading import AdapterFiles, locate
from adapterkit.registry import methods, tasks
from adapterkit.train import layout


class Found(NamedTuple):
    """An adapter, and whence it is."""

    files: AdapterFiles
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
    except (FileNotFoundError, NotADirectoryError) as error:
        why = f"it has no {layout.CONFIG}" if Path(run).is_dir() else f"no such directory (from {Path.cwd()})"
        raise ConfigError(f"{run} is not the directory of a run: {why}") from error
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


def find(where: str) -> Found:
    """The adapter that is meant, as `adapterkit.ondisk.reading.locate` has it; of a run, the one that it trained.

    Raises:
        ConfigError: there is none, or the config of it or of its run is not valid.
        CheckpointError: the run has no adapter.
    """
    directory = Path(where)
    if (directory / layout.CONFIG).is_file() and not (directory / CONFIG_NAME).is_file():
        settings = load_config(directory)
        return Found(AdapterFiles(adapter_of(directory, settings)), directory, settings)
    files = locate(where)
    run = _run_around(files.directory)
    return Found(files, run, None if run is None else load_config(run))


def _run_around(folder: Path) -> Path | None:
    """The run whose adapter, or checkpoint, a directory is."""
    for inside in (folder.resolve(), *folder.resolve().parents[:1]):
        run = inside.parent if inside.name == layout.ADAPTER else inside.parent.parent
        kept = inside.name == layout.ADAPTER or inside.parent.name == layout.CHECKPOINTS
        if kept and (run / layout.CONFIG).is_file() and (run / layout.MANIFEST).is_file():
            return run
    return None
