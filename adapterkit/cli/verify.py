"""``verify``: whether a saved adapter is sound; with the base model, whether it fits."""

from __future__ import annotations

import json
from collections.abc import Sequence

from adapterkit.cli.options import PLACES, TASK, Options
from adapterkit.errors import EXIT_CHECK, EXIT_OK, AdapterkitError, UnknownPluginError
from adapterkit.ondisk.reading import AdapterFiles, locate
from adapterkit.ondisk.soundness import not_finite, notes, problems


def verify(arguments: Sequence[str]) -> int:
    """``verify DIR [--values] [--base MODEL [--task NAME]] [--json]``.

    Raises:
        ConfigError: there is no such directory, or task.
    """
    options = Options(
        "verify",
        "DIR [--values] [--base MODEL [--task NAME]] [--json]",
        "Whether a saved adapter is sound: its config is known, its file whole, and its tensors are those that the "
        "config asks for, as far as can be told without the base model.",
        epilog="exit codes: 0 sound, 4 not, with everything that is wrong, 2 there is nothing to look at",
    )
    options.add_argument("adapter", metavar="DIR", help=PLACES)
    options.add_argument("--values", action="store_true", help="look for NaN and infinite values, too, by torch")
    options.add_argument(
        "--base", metavar="MODEL", help="match every tensor with this model, by its configuration alone, by torch"
    )
    options.add_argument("--task", metavar="NAME", help=TASK)
    options.add_argument("--json", action="store_true", help="print the findings as JSON")
    given = options.read(arguments)
    files = locate(given.adapter)
    found = problems(files)
    if not found and given.values:
        found += not_finite(files.tensors())
    if not found and given.base is not None:
        found += _unfit(files, given.base, given.task)
    told = [] if found else notes(files)
    if given.json:
        print(json.dumps({"directory": str(files.directory), "problems": found, "notes": told}, indent=2))
    else:
        print("\n".join(_lines(files, found, told)))
    return EXIT_CHECK if found else EXIT_OK


def _lines(files: AdapterFiles, found: Sequence[str], told: Sequence[str]) -> list[str]:
    if found:
        return [f"not sound: {files.directory}", *(f"! {line}" for line in found)]
    count = len(files.header.tensors)
    tensors = "tensors" if count > 1 else "tensor"
    return [f"ok: {files.config.peft_type}, {count} {tensors}", *(f"  note: {line}" for line in told)]


def _unfit(files: AdapterFiles, base: str, task: str | None) -> list[str]:
    from adapterkit.train.standalone import matched

    try:
        matched(files, base, task=task, device="meta")
    except UnknownPluginError:
        raise
    except AdapterkitError as error:
        return [str(error)]
    return []
