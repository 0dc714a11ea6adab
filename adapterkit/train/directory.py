"""A run's directory, and what is written into it while the run goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError
from adapterkit.files import missing_folders, remove_empty, write_text
from adapterkit.train import fingerprints, layout

logger = logging.getLogger("adapterkit")


@final
class RunDirectory:
    """Writes config, manifest, metrics and summary. Processes other than the first of a distributed run write nothing.

    Args:
        path: the directory; made if need be.
        config: the run.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.writes = os.environ.get("RANK", "0") == "0"
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
        self._made: list[Path] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Begin with status *running* and end with *ok*, *failed* or *interrupted*, whatever happens inside."""
        before = layout.read_manifest(self.path)
        if before:
            self.manifest["resumed"] = [*before.get("resumed", []), before.get("started")]
        self._begin()
        handler = self._log_handler()
        try:
            with _the_log(handler):
                yield
                self._end("ok", None)
        except KeyboardInterrupt:
            self._end("interrupted", "interrupted")
            raise
        except BaseException as error:
            # Into the file alone: whoever catches the error says on the terminal what a person should see.
            text = "".join(traceback.format_exception(error)).rstrip()
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
            self._end("failed", f"{type(error).__name__}: {error}")
            if isinstance(error, ConfigError) and not before:
                self._discard()
            raise
        finally:
            handler.close()

    def _discard(self) -> None:
        """Leave nothing behind of a run that could not begin, unless something else is in its directory."""
        ours = {layout.MANIFEST, layout.CONFIG, layout.SUMMARY, layout.LOG}
        if self.path.is_dir() and {entry.name for entry in self.path.iterdir()} <= ours:
            shutil.rmtree(self.path)
            remove_empty(self._made)

    def _begin(self) -> None:
        if self.writes:
            self._made = missing_folders(self.path.parent)
            self.path.mkdir(parents=True, exist_ok=True)
            content = json.loads(self._config.model_dump_json())
            write_text(self.path / layout.CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        self.note()

    def _log_handler(self) -> logging.Handler:
        if not self.writes:
            return logging.NullHandler()
        handler = logging.FileHandler(self.path / layout.LOG, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        return handler

    def _end(self, status: str, error: str | None) -> None:
        self.summary |= {"status": status, "seconds": self.elapsed()}
        if error is not None:
            self.summary["error"] = error
        if self.writes:
            write_text(self.path / layout.SUMMARY, dumped(self.summary))
        self.note(status=status, ended=now(), peak_memory=fingerprints.peak_memory())

    def note(self, **entries: Any) -> None:
        """Add entries to the manifest, which is written anew."""
        self.manifest |= entries
        if self.writes:
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


def dumped(content: Any) -> str:
    """JSON for people to read."""
    return json.dumps(content, indent=2, default=str) + "\n"


def now() -> str:
    """The time in UTC, to the microsecond, so that runs can be put in order."""
    return datetime.now(UTC).isoformat()


@contextmanager
def logging_to(handler: logging.Handler, *, of: logging.Logger = logger) -> Iterator[None]:
    """Everything that adapterkit logs inside the block also goes to ``handler``; ``of`` the root, all else too."""
    level = logger.level
    of.addHandler(handler)
    logger.setLevel(min(logging.INFO, level or logging.INFO))
    try:
        yield
    finally:
        of.removeHandler(handler)
        logger.setLevel(level)


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
        self.path = path
        kept = [entry for entry in layout.read_metrics(path.parent) if entry.get("step", 0) <= step] if step else []
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))

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
