"""``diff``: what differs between two saved adapters."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf, isfinite
from typing import Any, NamedTuple

from adapterkit.cli.listing import columns
from adapterkit.cli.options import PLACES, Options
from adapterkit.errors import EXIT_CHECK, EXIT_OK, AdapterkitError
from adapterkit.ondisk.header import Entry
from adapterkit.ondisk.names import plain, with_open_numbers
from adapterkit.ondisk.reading import AdapterFiles, locate

_ABSENT = "-"


class Differences(NamedTuple):
    """What the two have in different ways: by key, the first one's and the second one's, None where it has none."""

    settings: Mapping[str, tuple[Any, Any]]
    base: Mapping[str, tuple[Any, Any]]
    tensors: Mapping[str, tuple[Any, Any]]
    values: Mapping[str, float]
    """The largest absolute difference in each tensor that both have in one shape, where there is any; infinite where a
    value of one alone is NaN or infinite."""


def diff(arguments: Sequence[str]) -> int:
    """``diff A B [--values] [--json]``.

    Raises:
        ConfigError: one of them is not there.
        CheckpointError: one cannot be read.
    """
    options = Options(
        "diff",
        "A B [--values] [--json]",
        "What differs between two saved adapters: settings, the base that they were made on, and names, shapes and "
        "types of tensors.",
        epilog="exit codes: 0 nothing, 4 something. Values are compared with --values only. A setting that a file "
        "leaves out counts as the method's default; the order of names does not count.",
    )
    options.add_argument("a", metavar="A", help=PLACES)
    options.add_argument("b", metavar="B", help="the same")
    options.add_argument("--values", action="store_true", help="compare the tensors' values, too, by torch")
    options.add_argument("--json", action="store_true", help="print the differences as JSON")
    given = options.read(arguments)
    a, b = locate(given.a), locate(given.b)
    found = differences(a, b, values=given.values)
    if given.json:
        values = {key: distance if isfinite(distance) else None for key, distance in found.values.items()}
        print(json.dumps({**found._asdict(), "values": values}, indent=2, default=_as_json))
    elif any(found):
        print(_text(found))
    else:
        print(f"equal: settings and {len(a.header.tensors)} tensors{'' if given.values else ', values not compared'}")
    return EXIT_CHECK if any(found) else EXIT_OK


def differences(a: AdapterFiles, b: AdapterFiles, *, values: bool = False) -> Differences:
    """What two saved adapters have in different ways.

    Raises:
        CheckpointError: one cannot be read.
    """
    return Differences(
        _unequal(_comparable(a), _comparable(b)),
        _unequal(a.base, b.base) if a.base and b.base else {},
        _unequal(a.header.tensors, b.header.tensors),
        _distances(a, b) if values else {},
    )


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def _comparable(files: AdapterFiles) -> dict[str, Any]:
    """The settings, completed with the method's defaults where they are valid; names in order, as they are no list."""
    settings = dict(files.settings)
    with suppress(AdapterkitError):
        inert = files.config.inert
        settings = {k: v for k, v in settings.items() if inert.get(k) != v} | files.config.to_dict()
    return {key: sorted(value) if _are_names(value) else value for key, value in settings.items()}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _distances(a: AdapterFiles, b: AdapterFiles) -> dict[str, float]:
    ours, theirs = a.tensors(), b.tensors()
    both = {key: (tensor, theirs[key]) for key, tensor in ours.items() if key in theirs}
    distances = {key: _distance(one, two) for key, (one, two) in both.items() if one.shape == two.shape}
    return {key: distance for key, distance in distances.items() if distance}


def _distance(one: Any, two: Any) -> float:
    from torch import where

    one, two = one.double(), two.double()
    same = (one == two) | (one.isnan() & two.isnan())
    distance = float(where(same, 0.0, (one - two).abs()).max()) if one.numel() else 0.0
    return distance if isfinite(distance) else inf


def _text(found: Differences) -> str:
    tables: list[list[tuple[str, ...]]] = []
    for title, pairs in (("setting", found.settings), ("base", found.base)):
        rows = [(key, _cell(one), _cell(two)) for key, (one, two) in pairs.items()]
        tables += [[(title, "A", "B"), *rows]] if rows else []
    groups = Counter((_name(key), _cell(one), _cell(two)) for key, (one, two) in found.tensors.items())
    tables += [[("tensors", "A", "B", "number"), *((*row, str(n)) for row, n in groups.items())]] if groups else []
    largest: dict[str, list[float]] = defaultdict(list)
    for key, distance in found.values.items():
        largest[_name(key)].append(distance)
    rows = [(name, f"{max(distances):.4g}", str(len(distances))) for name, distances in largest.items()]
    tables += [[("values", "largest difference", "number"), *rows]] if rows else []
    return "\n\n".join(columns(table) for table in tables)


def _name(key: str) -> str:
    return with_open_numbers(plain(key))


def _cell(value: Any) -> str:
    if isinstance(value, Entry):
        return f"{' x '.join(map(str, value.shape))} {value.dtype}"
    return _ABSENT if value is None else value if isinstance(value, str) else json.dumps(value)


def _as_json(value: Any) -> Any:
    return {"shape": list(value.shape), "dtype": value.dtype}
