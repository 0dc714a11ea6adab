"""A command line as flags and overrides, in the form in which Hydra can serve every one of them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from adapterkit.errors import did_you_mean
from adapterkit.hydra.problems import Problem
from adapterkit.hydra.source import GROUPS
from adapterkit.registry import KINDS

VALUE_FLAGS = {
    **dict.fromkeys(("--cfg", "-c"), "cfg"),
    **dict.fromkeys(("--package", "-p"), "package"),
    **dict.fromkeys(("--config-path", "-cp"), "config_path"),
    **dict.fromkeys(("--config-name", "-cn"), "config_name"),
    **dict.fromkeys(("--config-dir", "-cd"), "config_dir"),
    "--experimental-rerun": "experimental_rerun",
}
"""Hydra's flags that take a value."""

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What may follow ``--info``."""

SHOWING = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--shell-completion", "-sc")
"""Flags that show something instead of running it."""

COMPOSING = ("--multirun", "-m", *(flag for flag, name in VALUE_FLAGS.items() if name.startswith("config_")))
"""Flags that have a part in what is composed."""

FLAGS = tuple(dict.fromkeys((*COMPOSING, *VALUE_FLAGS, *SHOWING, "--run", "-r", "--resolve", "--version")))
"""Every flag of Hydra."""

SPECIAL = re.compile(r"[()#^=~!&;<>`\"\s]|\$\{[^}]*\$\{")
"""What Hydra's grammar does not take in an unquoted value: characters, and an interpolation inside another."""


@dataclass
class Arguments:
    """A command line, taken apart."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    """Overrides in Hydra's grammar that can be parsed, forced (``++``) where they set a value."""
    values: dict[str, str] = field(default_factory=dict)
    """Values of `VALUE_FLAGS` by name."""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong already."""

    @property
    def multirun(self) -> bool:
        """Whether the command line itself asks for a sweep."""
        return bool({"-m", "--multirun"} & set(self.flags)) or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def is_plain_run(self) -> bool:
        """Whether this can be nothing but one run: no flags but for presets, and no file that might ask for a sweep."""
        flags = {flag.partition("=")[0] for flag in self.flags if flag.startswith("-")}
        for_hydra = any(override.startswith(("experiment=", "hydra.", "hydra/")) for override in self.overrides)
        return flags <= {"--config-dir", "-cd"} and not for_hydra

    @property
    def own_primary(self) -> bool:
        """Whether another primary config than ``conf/config.yaml`` may be meant."""
        return bool({"config_path", "config_name"} & self.values.keys())

    @property
    def sources(self) -> list[str]:
        """The flags that say where configs lie, which go with any other overrides."""
        kept = ((name, value) for name, value in self.values.items() if name.startswith("config_"))
        return [f"--{name.replace('_', '-')}={value}" for name, value in kept]

    @property
    def runs(self) -> bool:
        """Whether this starts something, rather than showing it."""
        return not {*SHOWING} & {flag.partition("=")[0] for flag in self.flags}

    @property
    def argv(self) -> list[str]:
        """For Hydra 1.3, whose parser wants all flags on one side of the overrides."""
        return [*self.flags, *(["--"] if self.flags else []), *self.overrides]


def parse(argv: Sequence[str]) -> Arguments:
    """Take ``argv`` apart, and rewrite the overrides.

    * ``+method=lora`` and ``method=lora`` mean the same: the groups are in the defaults list, so the plus goes.
    * A plain ``method.r=4`` becomes ``++method.r=4``. Hydra would stop at the first unknown key, and cannot place a
      key below a group that is swept; forced, every key gets to Pydantic, which knows them all.
    """
    arguments = _split(argv)
    parsed = [parsed for raw in arguments.overrides if (parsed := _parse_one(raw, arguments.problems)) is not None]
    arguments.problems += unknown_flags(arguments.flags)
    arguments.problems += [*_repeated(parsed), *(p for override in parsed for p in _misused_group(override))]
    kept = {_place(override): override for override in parsed if not _misused_group(override)}
    arguments.overrides = [_rewritten(override) for override in kept.values()]
    return arguments


def _split(argv: Sequence[str]) -> Arguments:
    found = Arguments()
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if token == "--":
            found.overrides += rest
            break
        if not token.startswith("-"):
            found.overrides.append(token)
            continue
        found.flags.append(token)
        if name in VALUE_FLAGS and (equals or rest):
            if not equals:
                value = rest.pop(0)
                found.flags.append(value)
            if VALUE_FLAGS[name] == "config_path":
                value = _from_here(value)
                found.flags[-1] = f"{name}={value}" if equals else value
            found.values[VALUE_FLAGS[name]] = value
        elif token in ("--info", "-i") and rest and rest[0] in INFO:
            found.flags.append(rest.pop(0))
    return found


def _from_here(path: str) -> str:
    """A path as seen from the current directory; Hydra would look from that of its caller's module."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def unknown_flags(flags: Sequence[str], known: Sequence[str] = FLAGS) -> list[Problem]:
    """What is said of flags that there are not."""
    names = (flag.partition("=")[0] for flag in flags if flag.startswith("-"))
    choices = f"flags: {', '.join(flag for flag in known if flag.startswith('--'))}"
    return [
        Problem("", f"no flag {name!r}{did_you_mean(name, known)}", choices=choices)
        for name in names
        if name not in known
    ]


def _parse_one(raw: str, problems: list[Problem]) -> Override | None:
    try:
        override = OverridesParser.create().parse_override(raw)
    except HydraException as error:
        problems.append(Problem("", _cannot_parse(raw, error)))
        return None
    value = override.value()
    if isinstance(value, RangeSweep) and value.step == 0:
        problems.append(Problem(override.key_or_group, "range() with a step of 0 has no end"))
        return None
    return override


def _cannot_parse(raw: str, error: Exception) -> str:
    key, equals, value = raw.partition("=")
    if not equals:
        return f"cannot read {raw!r}: expected key=value"
    if SPECIAL.search(value) and not value.startswith(("'", '"')):
        quoted = f"'{key}=\"{value}\"'" if "$" in value else f"\"{key}='{value}'\""  # a shell reads $ in double quotes
        return (
            f"cannot read {raw!r}: characters such as ( ) # ^ = ~ and spaces need quoting twice, for Hydra and for the "
            f"shell:\n    {quoted}"
        )
    detail = next((line for line in str(error).splitlines() if line.strip()), "").partition(" See ")[0]
    return f"cannot read {raw!r}: {detail}"


def _place(override: Override) -> str:
    return override.key_or_group + (f"@{override.package}" if override.package else "")


def _repeated(parsed: Sequence[Override]) -> list[Problem]:
    """A sweep would keep the last of two, a single run might merge them: neither is what was meant."""
    lines: dict[str, list[str]] = defaultdict(list)
    for override in parsed:
        lines[_place(override)].append(str(override.input_line))
    problems = []
    for key, given in lines.items():
        if len(given) > 1:
            values = ",".join(line.partition("=")[2] for line in given)
            hint = f"; to try each of them: -m {key}={values}" if key in GROUPS else ""
            problems.append(Problem(key, f"given {len(given)} times ({', '.join(given)}); keep one{hint}"))
    return problems


def is_choice(override: Override) -> bool:
    """Whether an override chooses among the options of one of our groups."""
    return override.key_or_group in GROUPS and override.package is None and not override.is_delete()


def _misused_group(override: Override) -> list[Problem]:
    group = override.key_or_group
    if not (group in GROUPS or "/" in group or not group):
        return []
    if override.is_delete():
        named = override.value() in (None, "") or isinstance(override.value(), str)
        return [] if named else [Problem(group, f"takes a name, not {override.value()}, if any: ~{group}")]
    if not group:
        return [Problem("", f"cannot read {str(override.input_line)!r}: expected group@package=name")]
    values = _values(override)
    unnamed = next((value for value in values if not isinstance(value, str | QuotedString | list | dict)), "")
    if unnamed != "":
        shown = "null" if unnamed is None else str(unnamed)
        return [Problem(group, f"takes a name, not {shown}; for none, leave it out; to drop a file's: ~{group}")]
    return [] if override.is_sweep_override() or not is_choice(override) else _not_one_name(group, values[0])


def _values(override: Override) -> list[Any]:
    """The values of an override that are written out."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return list(value.list)
    if isinstance(value, RangeSweep | IntervalSweep):
        return [value.start]
    return [] if override.is_sweep_override() else [value]


def _not_one_name(group: str, value: Any) -> list[Problem]:
    if isinstance(value, dict):
        return [Problem(group, f"takes the name of a preset; set its keys one by one: {group}.{_first(value)}=...")]
    if isinstance(value, list) and group in KINDS:
        return [Problem(group, f"a run has one {group}; to try several: -m {group}={','.join(map(str, value))}")]
    return []


def _first(value: dict[Any, Any]) -> str:
    return str(next(iter(value), "key"))


def _rewritten(override: Override) -> str:
    line, key = str(override.input_line), override.key_or_group
    if override.is_delete() or override.package is not None or "/" in key:
        return line
    if is_choice(override):
        return line.lstrip("+")
    return forced(line)


def forced(line: str) -> str:
    """An override, or its key, as one that sets a nested value whether or not there is one: ``++method.r=4``."""
    key = line.lstrip("+").partition("=")[0]
    return "++" + line.lstrip("+") if "." in key and not key.startswith("hydra.") and line[:1] != "~" else line


def completion_line(line: str) -> str:
    """A line to complete (``COMP_LINE``) whose finished words can be composed: no plus before our groups."""
    return re.sub(rf"(?<=\s)\+(?=({'|'.join(GROUPS)})=\S*\s)", "", line)
