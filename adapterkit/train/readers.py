"""Files to rows: CSV, TSV, JSON, JSON lines, Parquet, CoNLL, SQuAD and plain text.

Every reader returns columns, ``{name: values}``, all of one length, and raises `DataError` with the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from adapterkit.config.run import DATA_ENDINGS
from adapterkit.errors import DataError
from adapterkit.train.separated import open_text, read_separated

Columns = dict[str, list[Any]]


def read_file(path: Path, *, format: str = "auto", header: bool | None = None, separator: str | None = None) -> Columns:
    """The columns of one file.

    Args:
        path: the file.
        format: a format of `adapterkit.config.run.DataConfig`, or ``auto``.
        header: whether CSV and TSV have a header line; None looks. Without one the columns are called ``column1``, ...
        separator: of the cells of CSV, by a name of `adapterkit.train.separated.SEPARATORS`; None looks.

    Raises:
        DataError: the file is not there, its ending says nothing, or its content does not fit its format.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    chosen = format_of(path) if format == "auto" else format
    with told(path, chosen):
        if chosen in ("csv", "tsv"):
            return read_separated(path, chosen, header=header, separator=separator)
        return READERS[chosen](path)


@contextmanager
def told(path: Path, kind: str) -> Iterator[None]:
    """Inside the block, what Python says of a file that does not fit its format is a `DataError` with its place."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{_line_not_utf8(path)}: not UTF-8, which text files must be: convert it") from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as {kind}: {error}") from error


def _line_not_utf8(path: Path) -> int:
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return 1


def format_of(path: Path) -> str:
    """The format that a file's ending means; a JSON file that holds SQuAD's structure is ``squad``.

    Raises:
        DataError: the ending says nothing.
    """
    if path.suffix.lower() not in DATA_ENDINGS:
        raise DataError(
            f"{path}: the ending {path.suffix!r} names no format; set data.format. Endings: {', '.join(DATA_ENDINGS)}"
        )
    return DATA_ENDINGS[path.suffix.lower()]


def _json(path: Path) -> Columns:
    with open_text(path) as file:
        content = json.load(file)
    if isinstance(content, dict):
        if is_squad(content):
            return _flatten_squad(content, path)
        if _is_columns(content):
            return content
        content = content.get("data")
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of objects, an object of equally long lists, or a list under 'data'")
    return _columns(enumerate(content, start=1), path)


def _is_columns(content: dict[str, Any]) -> bool:
    """Whether an object holds lists of one length, and not rows under one name."""
    lists = [value for value in content.values() if isinstance(value, list)]
    rows = len(lists) == 1 and bool(lists[0]) and isinstance(lists[0][0], dict)
    return bool(lists) and not rows and len(lists) == len(content) and len({len(values) for values in lists}) == 1


def _jsonl(path: Path) -> Columns:
    with open_text(path) as file:
        return _columns(_parsed_lines(file, path), path)


def _parsed_lines(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from error


def _columns(rows: Iterable[tuple[int, Any]], path: Path) -> Columns:
    """Columns of row objects, which must have the same keys; a key that is absent is None."""
    found: list[dict[str, Any]] = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{path}: entry {number} is {type(row).__name__}, not an object")
        found.append(row)
    names = dict.fromkeys(name for row in found for name in row)
    return {name: [row.get(name) for row in found] for name in names}


def _parquet(path: Path) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        columns: Columns = parquet.read_table(path).to_pydict()
    except pa.ArrowException as error:
        raise DataError(f"{path}: not readable as parquet: {error}") from error
    return columns


def _conll(path: Path) -> Columns:
    """Token first, tag last on a line; a blank line, or one of ``-DOCSTART-``, ends a sentence."""
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    with open_text(path) as file:
        lines = [(number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1)]
    for is_break, group in groupby(lines, key=lambda line: not line[1].strip() or line[1].startswith("-DOCSTART-")):
        if not is_break:
            pairs = [_token_and_tag(line, path, number) for number, line in group]
            tokens.append([token for token, _ in pairs])
            tags.append([tag for _, tag in pairs])
    return {"tokens": tokens, "tags": tags}


def _token_and_tag(line: str, path: Path, number: int) -> tuple[str, str]:
    cells = line.split("\t") if "\t" in line else line.split()
    if len(cells) < 2:
        raise DataError(f"{path}:{number}: expected a token and a tag, found {line!r}")
    return cells[0], cells[-1]


def is_squad(content: Any) -> bool:
    """Whether a JSON document has SQuAD's structure: articles with paragraphs."""
    articles = content.get("data") if isinstance(content, dict) else None
    return isinstance(articles, list) and bool(articles) and "paragraphs" in articles[0]


def _squad(path: Path) -> Columns:
    with open_text(path) as file:
        content = json.load(file)
    if not is_squad(content):
        raise DataError(f"{path}: not in SQuAD's format: no 'data' with 'paragraphs'")
    return _flatten_squad(content, path)


def _flatten_squad(content: dict[str, Any], path: Path) -> Columns:
    rows = []
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                rows += [_question(paragraph["context"], entry) for entry in paragraph["qas"]]
    except KeyError as error:
        raise DataError(f"{path}: not in SQuAD's format: an entry has no {error}") from error
    return _columns(enumerate(rows, start=1), path)


def _question(context: str, entry: dict[str, Any]) -> dict[str, Any]:
    answers = entry.get("answers", [])
    return {
        "id": str(entry["id"]),
        "context": context,
        "question": entry["question"],
        "answers": {
            "text": [answer["text"] for answer in answers],
            "answer_start": [answer["answer_start"] for answer in answers],
        },
    }


def _text(path: Path) -> Columns:
    """One row a line, line ends kept, so that joining the rows gives the file."""
    with path.open(encoding="utf-8-sig") as file:
        return {"text": list(file)}


READERS: dict[str, Callable[[Path], Columns]] = {
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "conll": _conll,
    "squad": _squad,
    "text": _text,
}
