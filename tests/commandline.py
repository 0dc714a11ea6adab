"""Command lines run in this process, with a stand-in for training; and packages that exist only for one test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adapterkit.cli import main
from adapterkit.config.run import RunConfig
from adapterkit.registry import KINDS, installed_entry_points

LORA = ["+method=lora", "task=seq_cls"]
"""The shortest complete command line."""

Score = Callable[[RunConfig], float]


@dataclass
class Result:
    code: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> Result:
    """What ``python -m adapterkit argv`` returns and prints."""
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    return Result(code, out, err)


def in_new_process(*argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@dataclass
class Training:
    """Stands in for `adapterkit.train.run`: remembers configs, and gives each the metric that ``score`` says."""

    score: Score
    configs: list[RunConfig] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    goes_on_in: Path | None = None
    """The directory of an interrupted run that is gone on with."""

    def run(self, config: RunConfig, directory: Path, **options: Any) -> dict[str, Any]:
        self.configs.append(config)
        self.directories.append(directory)
        summary = {
            "status": "ok",
            "metrics": {"accuracy": self.score(config), "loss": 0.5},
            "metric": "accuracy",
            "greater_is_better": True,
            "trainable_parameters": 100,
            "all_parameters": 1000,
            "seconds": 1.0,
        }
        where = self.goes_on_in or directory
        (where / "summary.json").write_text(json.dumps(summary))
        return {**summary, "directory": str(where)}


def stand_in(monkeypatch: pytest.MonkeyPatch, score: Score = lambda config: 0.5) -> Training:
    """Put a `Training` in the place of the real one; ``score`` may raise what training might."""
    training = Training(score)
    module = ModuleType("adapterkit.train.run")
    module.run = training.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return training


def write_distribution(site: Path, name: str, entry_points: dict[str, dict[str, str]], **files: str) -> None:
    """A package as pip would leave it in ``site``: metadata, entry points by group, and modules by name."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [line for group, names in entry_points.items() for line in (f"[{group}]", *_pairs(names))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for module, source in files.items():
        (site / f"{module}.py").write_text(textwrap.dedent(source))


def _pairs(names: dict[str, str]) -> Iterator[str]:
    return (f"{name} = {value}" for name, value in names.items())


@contextmanager
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The distributions written to ``site`` are there, for as long as the block lasts."""
    modules = set(sys.modules)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(site))
        _look_again()
        yield
    for module in set(sys.modules) - modules:
        if Path(getattr(sys.modules[module], "__file__", None) or "/").parent == site:
            del sys.modules[module]
    _look_again()


def _look_again() -> None:
    installed_entry_points.cache_clear()
    for registry in KINDS.values():
        registry.__dict__.pop("declared", None)


METHOD = '''
from typing import ClassVar, Literal
from adapterkit.config.layer import LayerConfig
from pydantic import Field

class Config(LayerConfig):
    """A method that exists for a test: ``y = 2 y``."""
    adapter: ClassVar[str] = "tests.commandline:Training"
    {extra}
    peft_type: Literal["{name}"] = Field("{name}", description="Name.")
    strength: int = Field(3, ge=1, description="How much.")
'''
"""Source of a config class; fill in the name in capitals and one more line of the class's body."""
