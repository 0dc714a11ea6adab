"""The one place that uses names of Hydra beyond its documented interface, and what differs between 1.3 and 1.4."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
import hydra.utils
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adapterkit.errors import BrokenPluginError, ConfigError


def version_options() -> dict[str, str]:
    """Arguments for `hydra.main`: 1.3 needs ``version_base``, later releases warn about it."""
    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def allowing(target: str) -> AbstractContextManager[Any]:
    """A context in which configs may name ``target`` as a ``_target_``; Hydra 1.4 asks for such a list."""
    allow = getattr(hydra.utils, "execution_whitelist", None)
    return allow(target) if allow else nullcontext()


def load_plugins() -> Plugins:
    """Hydra's plugins, scanned, and its resolvers (``${now:%Y}``) made known.

    Raises:
        BrokenPluginError: an installed Hydra plugin cannot be imported; it would stop every Hydra program.
    """
    setup_globals()
    try:
        return Plugins.instance()
    except Exception as error:  # whatever the plugin does on import
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in frames if f"{os.sep}hydra_plugins{os.sep}" in f.filename), None)
        if place is None:
            raise
        name = place.filename.split(f"hydra_plugins{os.sep}")[1].split(os.sep)[0]
        raise BrokenPluginError(
            f"the Hydra plugin {name!r} stops every Hydra program here: {type(error).__name__}: {error}"
            f"\n  at {place.filename}:{place.lineno}\n  Uninstall the package it belongs to, or upgrade it."
        ) from error


@dataclass(frozen=True)
class LoadedFile:
    """A YAML file that took part in a composition, and the package (``"method"``, ``""``) its keys went to."""

    package: str
    path: Path


@contextmanager
def _told() -> Iterator[None]:
    """Errors that are not Hydra's own, which it lets through as they are, as errors of the configuration.

    Raises:
        ConfigError: a file is not YAML, or Hydra cannot take a value.
    """
    try:
        yield
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(error)) from error
    except (ConfigError, OmegaConfBaseException):
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def not_yaml(error: yaml.YAMLError) -> str:
    """File, line and what is wrong there, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {error}"
    words = [getattr(error, name) for name in ("problem", "context")]
    return f"{mark.name}:{mark.line + 1}: not YAML: {', '.join(word for word in words if word)}"


class Composer:
    """Composition without running: what `hydra.main` does before it starts a job."""

    def __init__(self, loader: ConfigLoader, config_name: str = "config") -> None:
        self._loader = loader
        self._config_name = config_name

    @classmethod
    def create(cls, directory: str, config_dir: str | None = None, config_name: str | None = None) -> Composer:
        """A composer over ``directory``, installed plugins, and the user's own ``config_dir``."""
        search_path = create_config_search_path(directory)
        if config_dir is not None:
            search_path.prepend(
                provider="command-line",
                path=f"file://{os.path.abspath(config_dir)}",
                anchor=SearchPathQuery(provider="schema"),
            )
        return cls(ConfigLoaderImpl(config_search_path=search_path), config_name or "config")

    @classmethod
    def running(cls, config: DictConfig) -> Composer:
        """The composer that made ``config`` in the Hydra program now running."""
        running = GlobalHydra.instance().hydra
        assert running is not None
        return cls(running.config_loader, config.hydra.job.config_name)

    def compose(self, overrides: Sequence[str], *, sweep: bool = False) -> DictConfig:
        """The whole config, Hydra's own part included, which ``${hydra:...}`` can ask from then on."""
        mode = RunMode.MULTIRUN if sweep else RunMode.RUN
        with _told():
            config = self._loader.load_configuration(self._config_name, list(overrides), run_mode=mode)
        if not GlobalHydra.instance().is_initialized():
            HydraConfig.instance().set_config(config)
        return config

    def compose_ours(self, overrides: Sequence[str]) -> DictConfig:
        """The config without Hydra's own part, for which nothing may ask then: less than half the time."""
        with _told():
            return self._composed(overrides)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        loader = cast(ConfigLoaderImpl, self._loader)
        parsed, repository = loader._parse_overrides_and_create_caching_repo(self._config_name, list(overrides))
        found = create_defaults_list(
            repo=repository,
            config_name=self._config_name,
            overrides_list=parsed,
            prepend_hydra=False,
            skip_missing=False,
        )
        config = loader._compose_config_from_defaults_list(defaults=found.defaults, repo=repository)
        OmegaConf.set_struct(config, True)
        apply_overrides(config, found.config_overrides)
        return config

    def compose_trial(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """The whole config of one trial of the sweep that ``master`` describes."""
        with _told():
            return self._loader.load_sweep_config(master, list(overrides))

    def options(self, group: str) -> list[str]:
        """The names that may be chosen for ``group``; nothing is imported."""
        return self._loader.get_group_options(group, config_name=self._config_name)

    def is_group(self, name: str) -> bool:
        """Whether ``name`` is a config group."""
        return bool(self._loader.repository.group_exists(name))  # type: ignore[attr-defined]

    def files(self, overrides: Sequence[str]) -> Iterator[LoadedFile]:
        """The YAML files that a composition reads, in the order in which they are merged."""
        found = self._loader.compute_defaults_list(self._config_name, list(overrides), RunMode.RUN)
        for default in found.defaults:
            path = self._path(default.config_path or "")
            if path is not None:
                yield LoadedFile(default.package or "", path)

    def _path(self, config_path: str) -> Path | None:
        for source in self._loader.get_sources():
            if source.is_config(config_path):
                return Path(source.path, f"{config_path}.yaml") if source.scheme() == "file" else None
        return None

    def directories(self, config: DictConfig) -> list[Path]:
        """The directories in which the files of ``config`` were looked for."""
        searched = OmegaConf.select(config, "hydra.runtime.config_sources")
        if searched is not None:
            return [Path(source.path) for source in searched if source.schema == "file"]
        return [Path(source.path) for source in self._loader.get_sources() if source.scheme() == "file"]

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parsed overrides; ``glob(...)`` is expanded."""
        return OverridesParser.create(config_loader=self._loader).parse_overrides(list(overrides))


def given(config: DictConfig, part: str) -> list[str]:
    """The overrides that went into ``config``, of its ``task`` or its ``hydra`` part, interpolations unresolved."""
    return cast(list[str], OmegaConf.to_container(config.hydra.overrides[part], resolve=False))


def apply_overrides(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Set values in a composed config in place, as Hydra does after composing."""
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
