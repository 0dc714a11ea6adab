"""``plugin new``: a whole package for a method or a task of one's own."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from adapterkit import __version__
from adapterkit.cli.flags import only
from adapterkit.errors import EXIT_OK, ConfigError, did_you_mean
from adapterkit.files import appearing, refuse_occupied
from adapterkit.registry import KINDS

LONGEST = 20
"""Letters of a name: with more, lines of the package would be too long."""

TEMPLATES = Path(__file__).parents[1] / "templates"
"""A folder a kind; files end in ``.in``, and are `string.Template`."""


def plugin(arguments: Sequence[str]) -> int:
    """``plugin new NAME [--kind method|task] [--to DIR]``.

    Raises:
        ConfigError: the name cannot be that of a package, or is taken; or there is something in ``DIR``.
    """
    parser = argparse.ArgumentParser(
        "adapterkit plugin",
        usage="%(prog)s new NAME [--kind method|task] [--to DIR]",
        description="Write a package with a method, or a task, of one's own: its config, what it computes, its entry "
        "point, and tests that hold it to adapterkit's contract.",
        allow_abbrev=False,
    )
    parser.add_argument("what", metavar="new", help="the only thing there is to do")
    parser.add_argument("name", metavar="NAME", help="as it is chosen: small letters, digits and _")
    parser.add_argument("--kind", choices=tuple(KINDS), default="method", help="what the package has (method)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="the package's folder (adapterkit-NAME)")
    options = only(parser, arguments)
    if options.what != "new":
        raise ConfigError(f"plugin has no {options.what!r}{did_you_mean(options.what, ['new'])}: plugin new NAME")
    _check(options.kind, options.name)
    folder = options.to or Path(_distribution(options.name))
    refuse_occupied(folder)
    with appearing(folder) as temporary:
        for path, text in contents(options.kind, options.name):
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
    with_lora = "" if options.kind == "method" else "+method=lora "
    chosen = f"+method={options.name} task=seq_cls" if options.kind == "method" else f"task={options.name}"
    print(
        f"{folder}: the {options.kind} {options.name}\n"
        f"  cd {folder} && pip install -e '.[test]' && pytest\n"
        f"  python -m adapterkit {with_lora}{chosen}"
    )
    return EXIT_OK


def _check(kind: str, name: str) -> None:
    """
    Raises:
        ConfigError: ``name`` is no name, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} is no name for a {kind}: small letters, digits and single _, and no word of Python"
        )
    if len(name) > LONGEST:
        raise ConfigError(f"{name!r} is too long a name: {LONGEST} letters at most")
    if name in KINDS[kind].declared:
        raise ConfigError(f"{name!r} is taken: a {kind} of {KINDS[kind].plugin(name).origin}")
    if importlib.util.find_spec(_package(name)) is not None:
        raise ConfigError(f"{name!r} is taken: a package {_package(name)} is installed")


def contents(kind: str, name: str) -> Iterator[tuple[Path, str]]:
    """The files of a package, and what is in each."""
    values = {
        "name": name,
        "NAME": name.upper(),
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "package": _package(name),
        "distribution": _distribution(name),
        "version": __version__,
    }
    for template in sorted((TEMPLATES / kind).rglob("*.in")):
        relative = template.relative_to(TEMPLATES / kind).with_suffix("")
        yield _placed(relative, name), Template(template.read_text(encoding="utf-8")).substitute(values)


def _placed(path: Path, name: str) -> Path:
    """Where a template's file goes: under the package's own name, which tests and presets bear, too."""
    own = {"test_it.py": f"test_{name}.py", "low.yaml": f"{name}_low.yaml"}
    renamed = path.with_name(own.get(path.name, path.name))
    return Path("src", _package(name), *renamed.parts[1:]) if renamed.parts[0] == "src" else renamed


def _package(name: str) -> str:
    return f"adapterkit_{name}"


def _distribution(name: str) -> str:
    return f"adapterkit-{name.replace('_', '-')}"
