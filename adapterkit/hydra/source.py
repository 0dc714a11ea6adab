"""Installed methods and tasks as Hydra options: names from entry points, a node when one is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from adapterkit.config.run import RunConfig
from adapterkit.hydra.nodes import node_from_model
from adapterkit.hydra.places import PRESET_GROUPS, plugin_directories
from adapterkit.hydra.private import load_plugins
from adapterkit.registry import CORE, DISCRIMINATOR, KINDS

BASE = "adapterkit_base"
"""The config that the primary one extends: defaults of `RunConfig`, without method and task."""

GROUPS = (*KINDS, *PRESET_GROUPS)
"""Every group of the primary config's defaults list."""


class RegistrySource(ConfigSource):
    """``adapterkit://``: the groups ``method`` and ``task``, and the base of the primary config."""

    @staticmethod
    def scheme() -> str:
        return "adapterkit"

    def available(self) -> bool:
        return True

    def load_config(self, config_path: str) -> ConfigResult:
        """A node made from the defaults of the chosen plugin.

        Raises:
            ConfigLoadError: there is no such config.
            adapterkit.errors.ConfigError: the plugin cannot be used; the message has the whole story.
        """
        kind, name = _split(config_path)
        if (kind, name) == (BASE, ""):
            node = node_from_model(RunConfig, exclude=frozenset(KINDS))
            return ConfigResult(CORE, f"adapterkit://{BASE}", config=node, header={"package": None})
        if kind not in KINDS or not name:
            raise ConfigLoadError(f"no config {config_path!r} here")
        registry = KINDS[kind]
        node = node_from_model(registry[name])
        distribution, qualified, _ = name.rpartition("/")
        if qualified:
            key = DISCRIMINATOR[kind]
            node[key] = f"{distribution}/{node[key]}"
        origin = registry.plugin(name).origin if _plain(name) in registry.declared else CORE
        return ConfigResult(origin, f"adapterkit://{kind}/{name}", config=node, header={"package": kind})

    def is_group(self, config_path: str) -> bool:
        kind, name = _split(config_path)
        if kind == "":
            return True
        return kind in KINDS and (not name or any(q.startswith(f"{name}/") for q in _qualified(kind)))

    def is_config(self, config_path: str) -> bool:
        kind, name = _split(config_path)
        if not name:
            return kind == BASE
        return kind in KINDS and (name in KINDS[kind] or name in _qualified(kind))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        kind, name = _split(config_path)
        groups, configs = results_filter != ObjectType.CONFIG, results_filter != ObjectType.GROUP
        if kind == "":
            return sorted([*(KINDS if groups else ()), *((BASE,) if configs else ())])
        return list(KINDS[kind]) if kind in KINDS and not name and configs else []


def _split(config_path: str) -> tuple[str, str]:
    """``"method/lora.yaml"`` to ``("method", "lora")``."""
    kind, _, name = config_path.strip("/").removesuffix(".yaml").partition("/")
    return kind, name


def _plain(name: str) -> str:
    return name.rpartition("/")[2]


def _qualified(kind: str) -> Iterator[str]:
    return (plugin.qualified for plugins in KINDS[kind].declared.values() for plugin in plugins)


class PresetSearchPath(SearchPathPlugin):
    """Puts the registry, then the presets of installed plugins, after the project's own ``conf/``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(CORE, "adapterkit://")
        for distribution, directory in plugin_directories():
            search_path.append(distribution, f"file://{directory}")


@cache
def install() -> None:
    """Make the registry known to Hydra, once a process.

    Raises:
        BrokenPluginError: a Hydra plugin in this environment stops every Hydra program.
    """
    plugins = load_plugins()
    plugins.register(RegistrySource)
    plugins.register(PresetSearchPath)
