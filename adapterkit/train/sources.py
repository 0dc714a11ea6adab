"""The splits that a configuration means, as they stand in files, on the Hub or built in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from adapterkit.config.run import DATA_ENDINGS, DataConfig
from adapterkit.errors import DataError, of_choices
from adapterkit.train.columns import Roles
from adapterkit.train.headers import common_header
from adapterkit.train.readers import Columns, read_file

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Our splits and what files and Hub splits are called for them."""

Builtin = Callable[[], Mapping[str, list[dict[str, Any]]] | None]


@dataclass(frozen=True)
class Raw:
    """Splits in their own columns."""

    splits: dict[str, Dataset]
    source: str
    fingerprint: str
    ordered: bool = False
    """Whether rows that follow each other belong together, as the lines of a text do."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Split to its files."""

    def place(self, name: str) -> str:
        """Where a split comes from, for messages."""
        return f"{self.places.get(name, self.source)} ({name})"


def read(config: DataConfig, roles: Roles, builtin: Builtin, *, alone: bool = False) -> Raw:
    """The splits as they are; ``alone``, where there may be none for training.

    Raises:
        DataError: a file or a split is not there or cannot be read, or a key of ``config`` would do nothing.
    """
    if config.path is None and config.train is None:
        examples = builtin()
        if examples is None:
            raise DataError("data.path is not set, and this task has no built-in data")
        content = json.dumps(examples, sort_keys=True).encode()
        made = {name: Dataset.from_list(rows) for name, rows in examples.items()}
        return Raw(made, "built-in data", hashlib.sha256(content).hexdigest())
    root = Path(config.path).expanduser() if config.path is not None else Path()
    if config.path is not None and root.is_dir() and _is_saved(root):
        refuse(config, "name", "revision", "format", "header", "separator", why=f"{root} holds a saved data set")
        return _from_splits(datasets.load_from_disk(str(root)), config, str(root), alone=alone)
    if root.exists():
        refuse(config, "name", "revision", why="the data are local files")
        return _from_files(_local_files(root, config, alone=alone), config, roles)
    refuse(config, "format", "header", "separator", why=f"{config.path} is not a local file or directory")
    return _from_hub(config, alone=alone)


def refuse(config: DataConfig, *keys: str, why: str) -> None:
    """
    Raises:
        DataError: one of ``keys`` is set, and would do nothing.
    """
    for key in keys:
        value = getattr(config, key)
        if value != DataConfig.model_fields[key].default:
            raise DataError(f"data.{key}={value} would do nothing: {why}; leave it out, or name the data it is for")


def _is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _local_files(root: Path, config: DataConfig, *, alone: bool) -> dict[str, list[Path]]:
    """The files of each split."""
    given = {name: getattr(config, name) for name in SPLITS}
    found = {name: _named_file(root, name, value) for name, value in given.items() if value is not None}
    if root.is_file():
        found.setdefault("train", [root])
    elif config.path is not None:
        for name, aliases in SPLITS.items():
            files = [path for path in _readable(root, config) if _belongs(path, aliases)]
            if files and name not in found:
                found[name] = files
        if not found and len(_readable(root, config)) == 1:
            found["train"] = _readable(root, config)
    if "train" not in found and not (alone and found):
        there = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
        raise DataError(f"data.path={root}: no file of a training split (train.tsv, ...) there; found: {there}")
    return {name: found[name] for name in SPLITS if name in found}  # others are compared with the training split


def _named_file(root: Path, split: str, value: str) -> list[Path]:
    base = root if root.is_dir() else root.parent
    for path in (base / value, Path(value).expanduser()):
        if path.is_file():
            return [path]
    files = sorted(path.name for path in base.iterdir() if path.is_file())
    raise DataError(f"data.{split}={value}: no such file in {base}{of_choices(value, files, 'Files:')}")


def _readable(root: Path, config: DataConfig) -> list[Path]:
    files = sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if config.format != "auto" or path.suffix.lower() in DATA_ENDINGS]


def _belongs(path: Path, aliases: Iterable[str]) -> bool:
    """Whether a file is called ``train``, ``train-00000-of-00002``, ``train_1`` ..."""
    stem = path.name.split(".")[0].lower()
    return any(stem == alias or stem.startswith((f"{alias}-", f"{alias}_")) for alias in aliases)


def _from_files(files: dict[str, list[Path]], config: DataConfig, roles: Roles) -> Raw:
    digest = hashlib.sha256()
    header = _header(files, config, roles)
    splits = {}
    for name, paths in files.items():
        parts = [_filled(path, config, header) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            digest.update(path.read_bytes())
            if part.column_names != parts[0].column_names:
                there = [", ".join(found.column_names) for found in (part, parts[0])]
                raise DataError(f"{path} has the columns {there[0]}, but {paths[0]} has {there[1]}")
        splits[name] = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    first = next(iter(files.values()))[0]
    ordered = _kind(first, config) == "text"
    source = config.path or str(first)
    places = {name: ", ".join(map(str, paths)) for name, paths in files.items()}
    return Raw(splits, source, digest.hexdigest(), ordered, places)


def _filled(path: Path, config: DataConfig, header: bool | None) -> Dataset:
    columns = read_file(path, format=config.format, header=header, separator=config.separator)
    found = table(columns, str(path))
    if not len(found):
        raise DataError(f"{path}: no rows" + (" beside the header line" if header else ""))
    return found


def _kind(path: Path, config: DataConfig) -> str | None:
    return DATA_ENDINGS.get(path.suffix.lower()) if config.format == "auto" else config.format


def _header(files: dict[str, list[Path]], config: DataConfig, roles: Roles) -> bool | None:
    there = {path: _kind(path, config) for paths in files.values() for path in paths}
    kinds = {path: kind for path, kind in there.items() if kind in ("csv", "tsv")}
    if "csv" not in kinds.values():
        refuse(config, "separator", why="there is no CSV file")
    if config.header is not None:
        if not kinds:
            refuse(config, "header", why="there is no CSV or TSV file")
        return config.header
    usual = [*roles.default, *roles.default.values(), *(name for names in roles.also.values() for name in names)]
    return common_header(kinds, [*usual, *config.columns.values()], config.separator)


def table(columns: Columns, source: str) -> Dataset:
    """A data set in memory.

    Raises:
        DataError: the values of a column are of different types.
    """
    import pyarrow as pa

    try:
        return Dataset.from_dict(columns)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{source}: {_of_several_types(columns)}: {error}") from error


def _of_several_types(columns: Columns) -> str:
    """Which column, and the first row with another type than the first one's."""
    for name, values in columns.items():
        first = next((value for value in values if value is not None), None)
        for row, value in enumerate(values, start=1):
            if value is not None and type(value) is not type(first):
                return f"column {name!r} begins with {first!r}, but row {row} has {value!r}, of another type"
    return "the values of a column are of different types"


def _from_hub(config: DataConfig, *, alone: bool) -> Raw:
    assert config.path is not None
    if config.path.startswith((".", "/", "~")) or Path(config.path).suffix.lower() in DATA_ENDINGS:
        raise DataError(f"data.path={config.path}: no such file or directory (from {Path.cwd()})")
    try:
        loaded = datasets.load_dataset(config.path, config.name, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data.path={config.path}: neither here nor readable on the Hub: {error}") from error
    return _from_splits(loaded, config, config.path, alone=alone)


def _from_splits(loaded: Any, config: DataConfig, source: str, *, alone: bool) -> Raw:
    there = loaded if isinstance(loaded, dict) else {"train": loaded}
    splits = {}
    for name, aliases in SPLITS.items():
        given = getattr(config, name)
        if given is not None and given not in there:
            raise DataError(f"data.{name}={given}: {source} has no such split{of_choices(given, there, 'Splits:')}")
        chosen = given or next((alias for alias in aliases if alias in there), None)
        if chosen is not None:
            splits[name] = there[chosen]
    if "train" not in splits and not (alone and splits):
        raise DataError(f"{source}: which split is for training? Set data.train. Splits: {', '.join(there)}")
    marks = "".join(split._fingerprint for split in splits.values())
    return Raw(splits, source, hashlib.sha256(marks.encode()).hexdigest())
