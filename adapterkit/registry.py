"""Names to plugins, read from the entry points of installed packages. Nothing is imported until it is asked for.

A plugin is a config class (`adapterkit.config.base.PeftConfig` or `adapterkit.config.task.TaskConfig`) declared under
``adapterkit.methods`` or ``adapterkit.tasks``. adapterkit's own are declared in the same way.
"""

from __future__ import annotations

import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from typing import Any

from adapterkit.errors import BrokenPluginError, ConfigError, IncompatiblePluginError, UnknownPluginError, did_you_mean

API_VERSION = 1
"""Raised when the contract of `adapterkit.nn.adapter` or of the config classes changes incompatibly. A plugin may state
the one it was written for, ``api: ClassVar[int] = 1`` in its config class, and is refused by any other."""

CORE = "adapterkit"


@cache
def installed_entry_points() -> EntryPoints:
    """The entry points of every installed package, looked for once: each look costs milliseconds."""
    return entry_points()  # type: ignore[return-value]  # a mapping with the same select in 3.11


@cache
def _name_of(distribution: Distribution) -> str:
    """Its name, for which its whole description is read: a millisecond, and a package declares a dozen plugins."""
    return distribution.name


@dataclass(frozen=True)
class Plugin:
    """One declared plugin: what is known without importing it."""

    kind: str
    name: str
    entry: EntryPoint

    @property
    def distribution(self) -> str:
        return _name_of(self.entry.dist) if self.entry.dist else "unknown"

    @property
    def version(self) -> str:
        return self.entry.dist.version if self.entry.dist else "?"

    @property
    def origin(self) -> str:
        """Distribution and version, ``"adapterkit-hra 0.1.0"``."""
        return f"{self.distribution} {self.version}"

    @property
    def qualified(self) -> str:
        return f"{self.distribution}/{self.name}"

    def load(self) -> type[Any]:
        """Import the config class.

        Raises:
            BrokenPluginError: it cannot be imported, is no config class, or leaves out what each has to declare.
            IncompatiblePluginError: it was written for another `API_VERSION`.
        """
        try:
            loaded = self.entry.load()
        except Exception as error:  # whatever a third party's module does on import
            raise BrokenPluginError(
                f"{self.kind} {self.name!r} ({self.origin}) could not be imported: {type(error).__name__}: {error}"
                f"\n  at {_last_line(error)}"
            ) from error
        if not isinstance(loaded, type) or not hasattr(loaded, "model_fields"):
            raise BrokenPluginError(f"{self.kind} {self.name!r} ({self.origin}): {self.entry.value} is no config class")
        missing = sorted(name for name in getattr(loaded, "__class_vars__", ()) if not hasattr(loaded, name))
        if missing:
            raise BrokenPluginError(
                f"{self.kind} {self.name!r} ({self.origin}): {self.entry.value} has no {' and no '.join(missing)}"
            )
        api = getattr(loaded, "api", API_VERSION)
        if api != API_VERSION:
            who = "adapterkit" if api > API_VERSION else self.distribution
            raise IncompatiblePluginError(
                f"{self.kind} {self.name!r} ({self.origin}) speaks plugin API {api}; this adapterkit speaks "
                f"{API_VERSION}. Upgrade {who}."
            )
        return loaded


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    outside = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    last = (outside or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"


class Registry(Mapping[str, type[Any]]):
    """A read-only mapping over one entry-point group, plus what this process registered by hand."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.group = f"adapterkit.{kind}s"
        self._local: dict[str, type[Any]] = {}

    @cached_property
    def declared(self) -> dict[str, list[Plugin]]:
        """Every declaration by name; two of one name stand side by side, adapterkit's own first."""
        found: dict[str, dict[str, Plugin]] = defaultdict(dict)
        for entry in installed_entry_points().select(group=self.group):
            plugin = Plugin(self.kind, entry.name, entry)
            found[entry.name].setdefault(f"{plugin.distribution}:{entry.value}", plugin)
        return {name: sorted(plugins.values(), key=_core_first) for name, plugins in sorted(found.items())}

    def plugin(self, name: str) -> Plugin:
        """The declaration that ``name`` or ``distribution/name`` means.

        Raises:
            UnknownPluginError: nothing of that name is installed.
            ConfigError: two third parties declare it; the message has the qualified names.
        """
        distribution, _, plain = name.rpartition("/")
        candidates = self.declared.get(plain, [])
        if distribution:
            candidates = [plugin for plugin in candidates if plugin.distribution == distribution]
        if not candidates:
            raise UnknownPluginError(
                f"no {self.kind} named {name!r}{did_you_mean(name, self)}\n  Installed: {', '.join(self) or 'none'}"
            )
        if len(candidates) > 1 and candidates[0].distribution != CORE:
            choices = ", ".join(f"{p.qualified} ({p.origin}, {p.entry.value})" for p in candidates)
            raise ConfigError(f"{self.kind} {name!r} is declared by several packages; choose one of {choices}")
        return candidates[0]

    def __getitem__(self, name: str) -> type[Any]:
        if name in self._local:
            return self._local[name]
        return self.plugin(name).load()

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is declared; nothing is imported to say so."""
        return isinstance(name, str) and (name in self._local or name in self.declared)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.declared.keys() | self._local.keys()))

    def __len__(self) -> int:
        return len(self.declared.keys() | self._local.keys())

    def register(self, name: str, plugin: type[Any]) -> None:
        """Add a plugin for this process only: notebooks and tests.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self:
            raise ConfigError(f"{self.kind} {name!r} is already taken")
        self._local[name] = plugin


def _core_first(plugin: Plugin) -> tuple[bool, str]:
    return (plugin.distribution != CORE, plugin.distribution)


methods = Registry("method")
tasks = Registry("task")
KINDS: Mapping[str, Registry] = {"method": methods, "task": tasks}


@cache
def resolve(reference: str) -> Any:
    """The object that ``"package.module:attribute"`` names; importing it may import torch."""
    module, _, attribute = reference.partition(":")
    __import__(module)
    value: Any = sys.modules[module]
    for part in attribute.split("."):
        value = getattr(value, part)
    return value
