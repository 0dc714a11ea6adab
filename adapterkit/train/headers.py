"""Whether CSV and TSV files have a header line, decided over all files of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from adapterkit.errors import DataError
from adapterkit.train.readers import told
from adapterkit.train.separated import beginning, has_header


def common_header(kinds: Mapping[Path, str], known: Collection[str], separator: str | None = None) -> bool | None:
    """Whether the files have a header line.

    A line that looks like one can be the first example of a small file, so files that begin differently only have one
    if their first lines have a name in common, or a name that the task knows.

    Args:
        kinds: CSV and TSV files, the training split's first, to ``csv`` or ``tsv``.
        known: names that columns usually have.
        separator: of the cells of CSV files, as for `adapterkit.train.readers.read_file`.

    Returns:
        None if there are no files.

    Raises:
        DataError: some have a header and others have not.
    """
    rows = {}
    for path, kind in kinds.items():
        with told(path, kind):
            rows[path] = beginning(path, kind, separator)
    looks = {path: has_header(lines) for path, lines in rows.items() if lines}
    names = {path: _folded(rows[path][0]) for path in looks}
    if not looks:
        return None
    if len({tuple(rows[path][0]) for path in looks}) == 1:
        return any(looks.values())
    named = [path for path in looks if looks[path] and names[path] & _folded(known)]
    bare = [path for path in looks if not looks[path]]
    if named and bare:
        first = ", ".join(rows[bare[0]][0])
        raise DataError(
            f"{named[0]} has a header line ({', '.join(rows[named[0]][0])}), but {bare[0]} begins with {first!r}: give "
            "all files one, or none of them, or say data.header=true if that is one"
        )
    return not bare and (bool(named) or bool(set.intersection(*names.values())))


def _folded(cells: Collection[str]) -> set[str]:
    return {cell.strip().casefold() for cell in cells}
