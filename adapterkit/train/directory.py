"""A run's directory, and what is written into it while the run goes on."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, final

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from adapterkit import launcher
from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError
from adapterkit.files import missing_folders, remove_empty, write_text
from adapterkit.train import fingerprints, layout, resume
from adapterkit.train.console import logger, logging_to


@final
class RunDirectory:
    """Writes config, manifest, metrics and summary. Processes other than the first of a distributed run write nothing.

    A directory that holds a run already stays as it is until this one is about to train: see `take`.

    Args:
        path: the directory; made if need be.
        config: the run.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.writes = launcher.is_first()
        self.began = time.monotonic()
        self.manifest: dict[str, Any] = {
            "status": "running",
            "started": now(),
            "config": layout.CONFIG,
            "seed": config.seed,
            "packages": fingerprints.packages(),
            "plugins": fingerprints.plugins(method=config.method.peft_type.lower(), task=config.task.name),
            "machine": fingerprints.machine(),
            "process": fingerprints.process(),
            "timings": {},
        }
        self.summary: dict[str, Any] = {"status": "running"}
        self._config = config
        self._resumed = self._begun = self._taken = False
        self._made: list[Path] = []
        self._before: set[str] = set()
        self._log = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)

    @contextmanager
    def recording(self, *, resumed: bool = False) -> Iterator[None]:
        """Begin with status *running* and end with *ok*, *failed* or *interrupted*, whatever happens inside.

        Args:
            resumed: whether the run that is in the directory goes on.

        Raises:
            ConfigError: another process is at a run in the directory.
        """
        self._refuse_live()
        self._resumed = resumed
        if resumed:
            before = layout.read_manifest(self.path)
            self.manifest["resumed"] = [*before.get("resumed", []), before.get("started")]
        self._before = _filled(self.path)
        if not resume.is_used(self.path):
            self._begin()
        try:
            with _the_log(self._log):
                yield
                self._end("ok", None)
                if not self._begun:
                    logger.info(
                        "%s holds a run already, which stays as it is: nothing of this one is written", self.path
                    )
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._close_log()

    def take(self) -> None:
        """From here on the directory is this run's. Another run that was there is moved, whole, into a folder inside.

        Raises:
            ConfigError: another process has begun a run there.
        """
        if self.writes and not self._begun:
            self._refuse_live()
            moved = None if self._resumed else resume.move_aside(self.path)
            self._begin()
            if moved is not None:
                logger.info("the run that was in %s is now in %s", self.path, moved)
        self._taken = True
        if self.writes:
            root = self.path / layout.CHECKPOINTS
            root.mkdir(parents=True, exist_ok=True)
            resume.remove_incomplete(root)

    def _refuse_live(self) -> None:
        there = layout.read_manifest(self.path)
        if self.writes and resume.is_alive(there):
            raise ConfigError(
                f"{self.path}: the run there is still going on (process {there['process']['pid']}); wait for its end, "
                "or choose another directory with hydra.run.dir"
            )

    def _fail(self, error: BaseException) -> None:
        """Record what ended the run; one that was refused before training leaves everything as it was."""
        if isinstance(error, ConfigError) and not self._taken:
            self._discard()
        elif isinstance(error, KeyboardInterrupt):
            self._end("interrupted", "interrupted")
        else:  # the trace into the file alone: whoever catches the error says on the terminal what a person should see
            text = "".join(traceback.format_exception(error)).rstrip()
            self._log.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
            self._open_log()
            self._end("failed", f"{type(error).__name__}: {error}")

    def _discard(self) -> None:
        """Leave nothing behind of a run that could not begin."""
        if not self.writes:
            return
        self._close_log()
        remove_empty([self.path / layout.CHECKPOINTS] if layout.CHECKPOINTS not in self._before else [])
        if self._begun:
            for name in {layout.MANIFEST, layout.CONFIG, layout.SUMMARY, layout.LOG} - self._before:
                (self.path / name).unlink(missing_ok=True)
            remove_empty([self.path, *self._made])

    def _begin(self) -> None:
        self._begun = True
        if self.writes:
            self._made = missing_folders(self.path.parent)
            self.path.mkdir(parents=True, exist_ok=True)
            content = json.loads(self._config.model_dump_json())
            write_text(self.path / layout.CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        self.note()
        self._open_log()

    def _open_log(self) -> None:
        """Write to the log's file what was logged so far, and from now on everything at once."""
        if self.writes and self._log.target is None:
            handler = logging.FileHandler(self.path / layout.LOG, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._log.setTarget(handler)
            self._log.capacity = 1
            self._log.flush()

    def _close_log(self) -> None:
        target = self._log.target
        self._log.close()
        if target is not None:
            target.close()

    def _end(self, status: str, error: str | None) -> None:
        self.summary |= {"status": status, "seconds": self.elapsed()}
        if error is not None:
            self.summary["error"] = error
        if self.writes and self._begun:
            write_text(self.path / layout.SUMMARY, dumped(self.summary))
        self.note(status=status, ended=now(), peak_memory=fingerprints.peak_memory())

    def note(self, **entries: Any) -> None:
        """Add entries to the manifest, which is written anew once the run has begun."""
        self.manifest |= entries
        if self.writes and self._begun:
            write_text(self.path / layout.MANIFEST, dumped(self.manifest))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how many seconds a stage took."""
        began = time.monotonic()
        yield
        self.manifest["timings"][stage] = round(time.monotonic() - began, 3)

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self.began, 3)


def _filled(directory: Path) -> set[str]:
    """Names of what is in a directory, without files that have no content."""
    there = directory.iterdir() if directory.is_dir() else ()
    return {path.name for path in there if path.is_dir() or path.stat().st_size}


def dumped(content: Any) -> str:
    """JSON for people to read."""
    return json.dumps(content, indent=2, default=str) + "\n"


def now() -> str:
    """The time in UTC, to the microsecond, so that runs can be put in order."""
    return datetime.now(UTC).isoformat()


@contextmanager
def _the_log(handler: logging.Handler) -> Iterator[None]:
    """Everything that is logged inside the block goes to ``handler``, and not to the log that Hydra has begun: it may
    be the same file, or that of a directory which a resumed run does not need.
    """
    root = logging.getLogger()
    begun = [h for h in root.handlers if isinstance(h, logging.FileHandler) and Path(h.baseFilename).name == layout.LOG]
    root.handlers[:] = [h for h in root.handlers if h not in begun]
    try:
        with logging_to(handler, of=root):
            yield
    finally:
        root.handlers[:] = [*root.handlers, *begun]


@final
class MetricsFile(TrainerCallback):
    """Appends every log entry of the trainer to ``metrics.jsonl``.

    Args:
        path: the file.
        step: entries after this step are dropped: a resumed run makes them again.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path, self.step = path, step

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            there = layout.read_metrics(self.path.parent) if self.step else []
            kept = [entry for entry in there if entry.get("step", 0) <= self.step]
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            entry = {"step": state.global_step, "epoch": state.epoch, "time": now(), **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, default=float) + "\n")


@final
class PlainLines(TrainerCallback):
    """One line for every log entry, where no progress bar can be shown."""

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if is_shown(name, value))
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, shown)


TIMINGS = ("_runtime", "_per_second", "_preparation_time")
"""How the names end that the trainer gives to its own times."""


def is_shown(name: str, value: Any) -> bool:
    """Whether a log entry's value says something to a person who waits."""
    hidden = name == "epoch" or name.endswith(TIMINGS)
    return isinstance(value, int | float) and not hidden
