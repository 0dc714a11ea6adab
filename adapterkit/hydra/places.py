"""Where presets lie: the project's ``conf/`` and that of each plugin. Imports neither Hydra nor any plugin."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adapterkit.errors import ConfigError
from adapterkit.registry import CORE, installed_entry_points

PRESET_GROUPS = ("model", "data", "trainer", "experiment")
"""Groups of the primary config that hold nothing but YAML presets."""


@dataclass(frozen=True)
class Preset:
    """A YAML file that may be chosen."""

    group: str
    """``"method"``, ``"hydra/launcher"``."""
    path: Path
    origin: str
    """The distribution it comes from."""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def choice(self) -> str:
        """The override that chooses it."""
        return f"{self.group}={self.name}"

    @property
    def summary(self) -> str:
        """The first line of the comment it begins with, headers of Hydra left out."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            text = line.lstrip("# ").strip()
            if text and not text.startswith("@"):
                return text
        return ""


def presets() -> Iterator[Preset]:
    """Every preset: the project's own, then those of installed plugins."""
    for origin, directory in ((CORE, conf_dir()), *plugin_directories()):
        for path in sorted(directory.rglob("*.yaml")):
            group = path.parent.relative_to(directory).as_posix()
            if group != ".":
                yield Preset(group, path, origin)


def plugin_directories() -> Iterator[tuple[str, Path]]:
    """Distribution and directory of every preset package declared under ``adapterkit.conf``; none is imported."""
    for entry in installed_entry_points().select(group="adapterkit.conf"):
        directory = _directory(entry.value)
        if directory is not None:
            yield (entry.dist.name if entry.dist else entry.name), directory


def _directory(module: str) -> Path | None:
    """Where the package ``"plugin.conf"`` lies: wheels and editable installs alike, without running its code."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    candidates = (Path(place, *rest) for place in (spec.submodule_search_locations or [] if spec else []))
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


@cache
def conf_dir() -> Path:
    """The project's own ``conf/``: inside the package in a wheel, beside it in a checkout.

    Raises:
        ConfigError: this installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "conf", package.parent / "conf"):
        if (directory / "config.yaml").is_file():
            return directory
    raise ConfigError(f"adapterkit's conf/ is missing beside {package}; install the package again")
