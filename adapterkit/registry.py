"""Names to plugins, read from the entry points of installed packages. Nothing is imported until it is asked for.

A plugin is a config class (`adapterkit.config.base.PeftConfig` or `adapterkit.config.task.TaskConfig`) declared under
``adapterkit.methods`` or ``adapterkit.tasks``. adapterkit's own are declared in the same way.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from typing import Any

from adapterkit.errors import BrokenPluginError, ConfigError, IncompatiblePluginError, UnknownPluginError, did_you_mean
from adapterkit.references import absent, find, reason
from adapterkit.references import resolve as resolve

API_VERSION = 1
"""Raised when the contract of `adapterkit.nn.adapter` or of the config classes changes incompatibly. A plugin may state
the one it was written for, ``api: ClassVar[int] = 1`` in its config class, and is refused by any other."""

CORE = "adapterkit"

DISCRIMINATOR = {"method": "peft_type", "task": "name"}
"""The field by which a config says which plugin it belongs to: the plugin's name, a method's in capitals."""

FIELDS = ("pattern_fields", "subset_fields", "runtime_fields", "start_fields", "only_with")
"""What config classes declare of their fields, by name."""

REFERENCES = ("adapter", "wrapper", "pipeline")
"""What config classes name that is imported when it is used."""

_REFERENCE = re.compile(r"\s*([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\]\s*)?$")  # with what was once said of extras


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
    def title(self) -> str:
        """How messages begin: ``"method 'hra' (adapterkit-hra 0.1.0)"``."""
        return f"{self.kind} {self.name!r} ({self.origin})"

    @property
    def qualified(self) -> str:
        return f"{self.distribution}/{self.name}"

    @property
    def reference(self) -> str:
        """``"package.module:Class"``; empty where the entry point is not written so."""
        found = _REFERENCE.match(self.entry.value)
        return f"{found[1]}:{found[2]}" if found else ""

    def load(self) -> type[Any]:
        """Import the config class.

        Raises:
            BrokenPluginError: it cannot be imported, is no config class, leaves out what each has to declare, has
                another name than it is declared by, or names an implementation that is certainly not there.
            IncompatiblePluginError: it was written for another `API_VERSION`.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> type[Any]:
        reference = self.reference
        if not reference:
            raise BrokenPluginError(
                f"{self.title}: its entry point {self.entry.value!r} names no class: it is to be 'package.module:Class'"
            )
        try:
            loaded = find(reference)
        except Exception as error:  # whatever a third party's module does on import
            raise BrokenPluginError(f"{self.title} could not be imported: {reason(reference, error)}") from error
        if not isinstance(loaded, type) or not hasattr(loaded, "model_fields"):
            raise BrokenPluginError(f"{self.title}: {self.entry.value} is no config class")
        self._check_api(loaded)
        problem = next(self._problems(loaded), None)
        if problem:
            raise BrokenPluginError(f"{self.title}: {self.entry.value} {problem}")
        return loaded

    def _check_api(self, loaded: type[Any]) -> None:
        api = getattr(loaded, "api", API_VERSION)
        if api != API_VERSION:
            who = "adapterkit" if api > API_VERSION else self.distribution
            raise IncompatiblePluginError(
                f"{self.title} speaks plugin API {api}; this adapterkit speaks {API_VERSION}. Upgrade {who}."
            )

    def _problems(self, loaded: type[Any]) -> Iterator[str]:
        """What is wrong with a config class, as words that follow its name."""
        missing = sorted(name for name in getattr(loaded, "__class_vars__", ()) if not hasattr(loaded, name))
        fields = [name for name in missing if name in loaded.model_fields]
        if fields:
            yield f"has {' and '.join(fields)} among its fields: annotate it as a ClassVar[str]"
        elif missing:
            yield f"has no {' and no '.join(missing)}"
        key = DISCRIMINATOR[self.kind]
        field = loaded.model_fields.get(key)
        own = getattr(field and field.default, "value", field and field.default)
        if not isinstance(own, str):
            yield f"has no {key}: a Literal with a default, {self._own_name!r}"
        elif own != self._own_name:
            yield f"has {key} {own!r}: it is to be declared as {own.lower()!r}, or to have {key} {self._own_name!r}"
        yield from _unknown_fields(loaded)
        yield from _faults_of_task(loaded, self.name) if self.kind == "task" else ()
        for name in REFERENCES:
            reference = getattr(loaded, name, None)
            why = absent(reference) if isinstance(reference, str) else ""
            if why:
                yield f"has {name} {reference!r}, and {why}"

    @property
    def _own_name(self) -> str:
        """What a config of this plugin calls it."""
        return self.name.upper() if self.kind == "method" else self.name


def _unknown_fields(loaded: type[Any]) -> Iterator[str]:
    """Where a config class names fields that it has not, as words that follow its name."""
    for name in FIELDS:
        named = getattr(loaded, name, ())
        if isinstance(named, str):
            yield f"has {name}={named!r}, where a set or a mapping is needed"
            continue
        unknown = sorted(set(named) - loaded.model_fields.keys())
        if unknown:
            yield f"has {name}={named!r}, and no fields {', '.join(unknown)}"


def _faults_of_task(loaded: type[Any], name: str) -> Iterator[str]:
    """What is wrong with a task's declaration, as words that follow its class's name."""
    own = loaded.task_type.lower()
    if own != name and own not in tasks:
        yield (
            f"has task_type {loaded.task_type!r}, and no task is declared as {own!r}: declare this one so, or take the "
            f"task_type of another: {', '.join(tasks)}"
        )
    if loaded.measures and loaded.default_metric not in (*loaded.measures, "loss"):
        measures = ", ".join(loaded.measures)
        yield f"has default_metric {loaded.default_metric!r}, which is none of its measures: {measures}"


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


def declared_as(config: type[Any]) -> str:
    """How messages name a config class: as it is declared, ``"method 'hra' (adapterkit-hra 0.1.0)"``, or by itself."""
    declarations = (p for registry in KINDS.values() for plugins in registry.declared.values() for p in plugins)
    for plugin in declarations:
        module, _, attribute = plugin.reference.partition(":")
        if getattr(sys.modules.get(module), attribute, None) is config:
            return plugin.title
    return f"{config.__module__}:{config.__qualname__}"


def referenced(config: type[Any], name: str, reference: str) -> Any:
    """What the reference ``name`` of a config class names.

    Raises:
        BrokenPluginError: it cannot be imported; names the plugin.
    """
    try:
        return resolve(reference)
    except Exception as error:  # whatever a third party's module does on import
        raise BrokenPluginError(
            f"{declared_as(config)}: its {name} {reference} could not be imported: {reason(reference, error)}"
        ) from error


def implementation(config: type[Any], name: str, base: type[Any]) -> Any:
    """The subclass of ``base`` that the reference ``name`` of a config class names.

    Raises:
        BrokenPluginError: it cannot be imported, or is something else; names the plugin.
    """
    reference = getattr(config, name, None)
    if not isinstance(reference, str):
        raise BrokenPluginError(
            f"{declared_as(config)}: its {name} is {reference!r}: a ClassVar that names the class is needed, "
            "'package.module:Class'"
        )
    found = referenced(config, name, reference)
    if not isinstance(found, type) or not issubclass(found, base):
        raise BrokenPluginError(f"{declared_as(config)}: its {name} {reference} is no {base.__name__}")
    return found
