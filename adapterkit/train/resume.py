"""Checkpoints that are whole, and interrupted runs that can go on.

A checkpoint is a directory ``checkpoint-<step>`` with the adapter, the optimizer, the scheduler, the generators' states
and the trainer's state. It counts only once its marker is there, which is written last and says which configuration it
is of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError
from adapterkit.files import write_text
from adapterkit.train.layout import (
    ADAPTER,
    CHECKPOINTS,
    CONFIG,
    EARLIER,
    MANIFEST,
    METRICS,
    PLOTS,
    SUMMARY,
    read_config,
    read_manifest,
)

MARKER = "complete"
_CLOCK_MAY_MOVE = 60
"""Seconds by which a process may seem to have begun at another time; more, and another one has its number."""

RECORD = (MANIFEST, CHECKPOINTS, ADAPTER, PLOTS, METRICS, SUMMARY, CONFIG)
"""What a run leaves, its log aside: first what makes it one to go on with, last what names its settings."""


def mark_complete(checkpoint: Path, owner: str = "") -> None:
    """Say that every file of a checkpoint is written.

    Args:
        checkpoint: its directory.
        owner: `digest` of the run's configuration.
    """
    write_text(checkpoint / MARKER, owner)


def digest(config: RunConfig) -> str:
    """SHA-256 over a configuration, ``resume`` aside."""
    content = {**json.loads(config.model_dump_json()), "resume": None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(root: Path) -> list[Path]:
    """The whole checkpoints under ``root``, oldest first."""
    found = [path.parent for path in root.glob(f"checkpoint-*/{MARKER}")]
    return sorted(found, key=step_of)


def rotate(root: Path, keep: int | None, *, best: str | None) -> None:
    """Delete the oldest checkpoints until ``keep`` are left; the newest and the best one always stay."""
    there = checkpoints(root)
    spare = [path for path in there[:-1] if best is None or path.name != Path(best).name]
    for path in spare[: max(0, len(there) - keep)] if keep is not None else []:
        remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; its marker goes first, so that half of one never counts."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def remove_incomplete(root: Path) -> None:
    """Delete checkpoints whose writing was interrupted."""
    for path in root.glob("checkpoint-*"):
        if path.is_dir() and not (path / MARKER).exists():
            shutil.rmtree(path)


def choose(config: RunConfig, directory: Path) -> tuple[Path, Path | None]:
    """The directory that a run belongs in, and the checkpoint it goes on from.

    ``resume=auto`` looks in ``directory``, beside it and one level above for the newest run of the same configuration
    that did not end and is not running; without one, and without ``resume``, the run begins in ``directory``. A run
    that was stopped before its first checkpoint begins again in its own directory.

    Raises:
        ConfigError: ``resume`` names a directory that is no run, was run with another configuration, or has ended; or
            the checkpoint in it is not of that run.
    """
    if config.resume is None:
        return directory, None
    if config.resume == "auto":
        found = newest_unfinished(config, directory)
        return (directory, None) if found is None else (found, _own(config, latest(found)))
    given = Path(config.resume).expanduser()
    given = given.parent.parent if given.name.startswith("checkpoint-") else given
    _check(config, given)
    return given, _own(config, latest(given))


def goes_on(config: RunConfig, run: Path) -> bool:
    """Whether the run in the directory that `choose` named is gone on with, and not begun."""
    return config.resume is not None and is_unfinished(run) and same_config(config, run)


def has_ended(config: RunConfig, run: Path, now: dict[str, Any]) -> bool:
    """Whether ``resume=auto`` finds that the run itself has ended well in its directory.

    Args:
        config: the run.
        run: its directory.
        now: the manifest as it would be: data, base and processes as they are.
    """
    if config.resume != "auto" or not (run / SUMMARY).is_file() or not (run / ADAPTER).is_dir():
        return False
    before = read_manifest(run)
    return before.get("status") == "ok" and same_config(config, run) and _inputs(before) == _inputs(now)


def _inputs(manifest: dict[str, Any]) -> list[Any]:
    """What a run's result depends on, its settings aside."""
    places = (("data", "fingerprint"), ("base", "fingerprint"), ("process", "of"))
    return [manifest.get(section, {}).get(key) for section, key in places]


def is_used(directory: Path) -> bool:
    """Whether a directory holds a run, or a part of one."""
    return any(_is_filled(directory / name) for name in RECORD)


def move_aside(directory: Path) -> Path | None:
    """Move the run that is in a directory into a folder inside, whose path is returned; None if there is no run.

    A move that was cut off is brought to its end by the next one: the configuration is moved last.
    """
    there = [name for name in RECORD if _is_filled(directory / name)]
    if not there:
        return None
    numbers = [int(path.name) for path in (directory / EARLIER).glob("*") if path.name.isdecimal()]
    folder = directory / EARLIER / str(max(numbers, default=1))
    if any((folder / name).exists() for name in (*there, CONFIG)):
        folder = folder.with_name(str(int(folder.name) + 1))
    folder.mkdir(parents=True, exist_ok=True)
    for name in there:
        (directory / name).rename(folder / name)
    return folder


def _is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def check_same(run: Path, checkpoint: Path, now: dict[str, Any]) -> None:
    """
    Args:
        run: the run that goes on.
        checkpoint: where it goes on from.
        now: the manifest as it will be: data and processes as they are.

    Raises:
        ConfigError: the run began with other data, or with another number of processes.
    """
    before = read_manifest(run)
    then, data = before.get("data", {}), now["data"]
    if then.get("fingerprint") != data["fingerprint"]:
        raise ConfigError(
            f"resume={run}: the data have changed since step {step_of(checkpoint)}: {then.get('source')} had the "
            f"fingerprint {str(then.get('fingerprint'))[:12]}, {data['source']} has {data['fingerprint'][:12]}. Put "
            "the data back as they were, or begin a new run without resume"
        )
    count, of = before.get("process", {}).get("of", 1), now["process"]["of"]
    if count != of:
        raise ConfigError(
            f"resume={run}: {count} processes trained together until step {step_of(checkpoint)}, and {of} would go on, "
            f"with other batches. Start {count}, or begin a new run without resume"
        )


def _own(config: RunConfig, checkpoint: Path | None) -> Path | None:
    """The checkpoint, if it is of a run of this configuration."""
    if checkpoint is not None and (checkpoint / MARKER).read_text(encoding="utf-8") != digest(config):
        raise ConfigError(
            f"resume={config.resume}: {checkpoint} is not of the run whose settings are in "
            f"{checkpoint.parent.parent / CONFIG}; move it away, or begin a new run without resume"
        )
    return checkpoint


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    there = checkpoints(run / CHECKPOINTS)
    return there[-1].resolve() if there else None


def newest_unfinished(config: RunConfig, directory: Path) -> Path | None:
    """The run that ``resume=auto`` goes on with."""
    return _newest(run for run in _unfinished(directory) if same_config(config, run))


def passed_over(config: RunConfig, directory: Path) -> str | None:
    """What to tell where ``resume=auto`` has found nothing to go on with but a run that had other settings."""
    if config.resume != "auto" or (found := _newest(_unfinished(directory))) is None:
        return None
    before, now = _settings(found), json.loads(config.model_dump_json())
    why = "settings that cannot be read" if before is None else f"other settings: {', '.join(differences(before, now))}"
    return f"resume=auto: begun anew, as the unfinished run {found} had {why}"


def _unfinished(directory: Path) -> list[Path]:
    """The runs in a directory, beside it and one level above that did not end and are not running."""
    roots = (directory.parent, directory.parent.parent)
    manifests = {
        path.resolve() for root in roots for depth in ("*", "*/*") for path in root.glob(f"{depth}/{MANIFEST}")
    }
    return [path.parent for path in manifests if is_unfinished(path.parent)]


def _newest(runs: Iterable[Path]) -> Path | None:
    return max(runs, key=lambda run: str(read_manifest(run).get("started", "")), default=None)


def is_unfinished(run: Path) -> bool:
    """Whether a run did not end well and no process is at it."""
    manifest = read_manifest(run)
    return manifest.get("status") in ("running", "failed", "interrupted") and not is_alive(manifest)


def is_alive(manifest: dict[str, Any]) -> bool:
    """Whether the process of a manifest is still running on this machine."""
    process = manifest.get("process", {})
    if manifest.get("status") != "running" or process.get("host") != socket.gethostname():
        return False
    if process.get("pid") == os.getpid():
        return False
    try:
        began = psutil.Process(int(process["pid"])).create_time()
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False
    except psutil.AccessDenied:
        return True
    return bool(abs(began - process.get("began", began)) < _CLOCK_MAY_MOVE)


def same_config(config: RunConfig, run: Path) -> bool:
    """Whether a run had this configuration, ``resume`` aside."""
    before, now = _settings(run), json.loads(config.model_dump_json())
    return before is not None and {**before, "resume": None} == {**now, "resume": None}


def _settings(run: Path) -> dict[str, Any] | None:
    """The configuration of a run; None where it cannot be read."""
    try:
        return read_config(run)
    except (OSError, ValueError):
        return None


def _check(config: RunConfig, run: Path) -> None:
    if not (run / MANIFEST).is_file() or not (run / CONFIG).is_file():
        raise ConfigError(f"resume={run}: not the directory of a run: it has no {MANIFEST}")
    if not same_config(config, run):
        changed = ", ".join(differences(read_config(run), json.loads(config.model_dump_json())))
        raise ConfigError(f"resume={run}: that run had other settings: {changed}")
    if is_alive(read_manifest(run)):
        raise ConfigError(f"resume={run}: that run is still running")
    if read_manifest(run).get("status") == "ok":
        raise ConfigError(f"resume={run}: that run has ended well; there is nothing to go on with")


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Dotted names of what differs between two configurations, ``resume`` aside."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if f"{place}{key}" != "resume"]
        return [name for key in keys for name in differences(before.get(key), now.get(key), f"{place}{key}.")]
    return [] if before == now else [place.rstrip(".")]
