"""CSV and TSV files: what separates their cells, whether they have a header line, and their columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from adapterkit.errors import DataError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""What ``data.separator`` may name."""

Row = list[str]

_LOOK_AT = 1000  # lines that decide what separates cells, and whether there is a header
_LONGEST = 2**31 - 1  # characters of a cell: what every platform takes


def read_separated(path: Path, kind: str, *, header: bool | None, separator: str | None = None) -> dict[str, Row]:
    """The columns of a CSV or TSV file; arguments as for `adapterkit.train.readers.read_file`.

    Raises:
        DataError: it is empty, a line has another number of cells, or two columns have one name.
    """
    rows = _rows(path, kind, separator)
    if not rows:
        raise DataError(f"{path}: empty")
    is_named = has_header([row for _, row in rows[:_LOOK_AT]]) if header is None else header
    first = rows[0][1]
    names = first if is_named else [f"column{index + 1}" for index in range(len(first))]
    body = rows[1:] if is_named else rows
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}:{rows[0][0]}: two columns are called {twice[0]!r}; columns: {', '.join(names)}")
    for number, row in body:
        if len(row) != len(names):
            raise DataError(f"{path}:{number}: {len(row)} columns, where the first line has {len(names)}")
    return {name: [row[index] for _, row in body] for index, name in enumerate(names)}


def beginning(path: Path, kind: str, separator: str | None = None) -> list[Row]:
    """The first rows of a CSV or TSV file, enough to see whether it has a header line."""
    return [row for _, row in _rows(path, kind, separator, limit=_LOOK_AT)]


def open_text(path: Path) -> TextIO:
    """A text file as it is, line ends included; a mark of its encoding is passed over."""
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, kind: str, separator: str | None, *, limit: int | None = None) -> list[tuple[int, Row]]:
    """The rows that are not empty, with the numbers of the lines that they end in."""
    between = _separator_of(path, separator) if kind == "csv" else ""
    with open_text(path) as file:
        cells = _records(file, between) if between else _tab_separated(file)
        return list(islice(((number, row) for number, row in cells if row), limit))


def _separator_of(path: Path, chosen: str | None) -> str:
    """What is between the cells of a CSV file: a comma, but where no line has one, or not all as many, and another mark
    divides all lines alike, as where the comma is for decimals.

    Raises:
        DataError: several other marks do.
    """
    if chosen is not None:
        return SEPARATORS[chosen]
    if _width(path, ",") > 1:
        return ","
    found = [name for name, mark in SEPARATORS.items() if mark != "," and _width(path, mark) > 1]
    if len(found) > 1:
        raise DataError(
            f"{path}: not separated by commas, and {' and '.join(found)} both divide its lines alike: set "
            "data.separator to one of them, or to comma"
        )
    return SEPARATORS[found[0]] if found else ","


def _width(path: Path, mark: str) -> int:
    """How many cells ``mark`` makes of every line; 0 where they differ, or it stands as in a sentence."""
    with open_text(path) as file:
        try:
            rows = [row for _, row in islice(_records(file, mark), _LOOK_AT) if row]
        except DataError:
            return 0
    widths = {len(row) for row in rows}
    is_text = any(cell.startswith(" ") for row in rows for cell in row[1:]) and mark != ","
    return widths.pop() if len(widths) == 1 and len(rows) > 1 and not is_text else 0


def _tab_separated(file: TextIO) -> Iterator[tuple[int, Row]]:
    """The lines of a TSV file, in which quotation marks mostly belong to the text."""
    for number, line in enumerate(file, start=1):
        line = line.rstrip("\r\n")
        yield number, [_unquoted(cell) for cell in line.split("\t")] if line else []


def _records(file: TextIO, separator: str) -> Iterator[tuple[int, Row]]:
    """The records of a CSV file, with the lines they end in; a cell may be a whole document."""
    reader, ended = csv.reader(file, strict=True, delimiter=separator), 0
    limit = csv.field_size_limit(_LONGEST)
    try:
        for row in reader:
            ended = reader.line_num
            yield ended, row
    except csv.Error as error:
        raise DataError(f"{file.name}:{ended + 1}: not readable as csv: {error} in what begins here") from error
    finally:
        csv.field_size_limit(limit)


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else cell


def has_header(rows: list[Row]) -> bool:
    """A first line with a number in it, or with a value that its column repeats, is data."""
    first, rest = rows[0], rows[1:]
    if any(_is_number(cell) for cell in first):
        return False
    return not any(len(row) > index and row[index] == cell for row in rest for index, cell in enumerate(first))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", cell.strip()) is not None
