"""``plugin new``: a whole package for a method or a task of one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from adapterkit import __version__
from adapterkit.cli.options import Options
from adapterkit.errors import EXIT_OK, ConfigError, did_you_mean
from adapterkit.files import appearing, refuse_occupied
from adapterkit.registry import KINDS

LONGEST = 20
"""Letters of a name: with more, lines of the package would be too long."""

TEMPLATES = Path(__file__).parents[1] / "templates"
"""A folder a kind; files end in ``.in``, and are `string.Template`."""


def plugin(arguments: Sequence[str]) -> int:
    """``plugin new NAME [--kind KIND] [--to OUT]``.

    Raises:
        ConfigError: the name cannot be that of a package, or is taken; or there is something in ``OUT``.
    """
    options = Options(
        "plugin",
        "new NAME [--kind KIND] [--to OUT]",
        "Write a package with a method, or a task, of one's own: its config, what it computes, its entry "
        "point, and tests that hold it to adapterkit's contract.",
    )
    options.add_argument("what", metavar="new", help="the only thing there is to do")
    options.add_argument("name", metavar="NAME", help="as it is chosen: small letters, digits and _")
    options.add_argument(
        "--kind",
        choices=tuple(KINDS),
        metavar="KIND",
        default="method",
        help=f"what the package has: {' or '.join(KINDS)} (method)",
    )
    options.add_argument(
        "--to", type=Path, metavar="OUT", help="the directory to write; nothing may be there (adapterkit-NAME)"
    )
    given = options.read(arguments)
    if given.what != "new":
        raise ConfigError(f"plugin has no {given.what!r}{did_you_mean(given.what, ['new'])}: plugin new NAME")
    _check(given.kind, given.name)
    folder = given.to or Path(_distribution(given.name))
    refuse_occupied(folder)
    with appearing(folder) as temporary:
        for path, text in contents(given.kind, given.name):
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
    chosen = f"+method={given.name} task=seq_cls" if given.kind == "method" else f"+method=lora task={given.name}"
    print(
        f"{folder}: the {given.kind} {given.name}\n"
        f"  cd {folder} && pip install -e '.[test]' && pytest\n"
        f"  python -m adapterkit {chosen}"
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
