"""Data of a run: built in, from local files, or from the Hub; its columns renamed to the roles that a task knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from adapterkit.config.run import DATA_ENDINGS, DataConfig
from adapterkit.errors import DataError, of_choices
from adapterkit.train.columns import Roles, assign
from adapterkit.train.headers import common_header
from adapterkit.train.readers import Columns, read_file
from adapterkit.train.shares import held_out, subset
from adapterkit.train.values import check_values

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Our splits and what files and Hub splits are called for them."""

Builtin = Callable[[], Mapping[str, list[dict[str, Any]]] | None]


@dataclass(frozen=True)
class Data:
    """The examples of a run, in columns named after a task's roles."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    source: str
    fingerprint: str
    """SHA-256 over the files (built-in data: the examples; Hub: fingerprints of its splits)."""

    def splits(self) -> dict[str, Dataset]:
        """The splits that are there, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}


@dataclass(frozen=True)
class _Raw:
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


def load_data(config: DataConfig, roles: Roles, builtin: Builtin = lambda: None) -> Data:
    """The splits that a configuration means.

    Args:
        config: where from.
        roles: the columns that the task needs, and how a validation split is to be made.
        builtin: makes the task's own examples by split, used where ``config`` names no data.

    Raises:
        DataError: a file, split or column is not there.
    """
    raw = _read(config, roles, builtin)
    named = _assigned(raw, roles, config.columns)
    raw = replace(raw, splits={name: split for name, split in named.items() if not _is_unlabelled(name, split, roles)})
    for name, split in raw.splits.items():
        check_values(split, roles, config.columns, raw.place(name))
    if "validation" in raw.splits:
        _refuse(config, "validation_fraction", why=f"{raw.source} has a validation split")
    else:
        raw = _with_validation(raw, roles, config.validation_fraction)
    splits = {name: subset(split, _limit(config, name), raw.ordered) for name, split in raw.splits.items()}
    return Data(splits["train"], splits["validation"], splits.get("test"), raw.source, raw.fingerprint)


@dataclass(frozen=True)
class Split:
    """Examples that stand alone, in columns named after a task's roles."""

    name: str
    examples: Dataset
    source: str
    fingerprint: str


def load_split(config: DataConfig, roles: Roles, name: str | None = None) -> Split:
    """One split, whole, of data that need no training split.

    Args:
        config: where from.
        roles: the columns that are needed.
        name: which split; None takes the first that is there of test, validation and training split.

    Raises:
        DataError: a file, split or column is not there.
    """
    raw = _read(config, roles, lambda: None, alone=True)
    chosen = name or next(split for split in ("test", "validation", "train") if split in raw.splits)
    if chosen not in raw.splits:
        raise DataError(f"{raw.source} has no {chosen} split. Splits: {', '.join(raw.splits)}")
    place = raw.place(chosen)
    examples = assign(raw.splits[chosen], roles, config.columns, place)
    if _is_unlabelled(chosen, examples, roles):
        raise DataError(f"{place}: no row has a label")
    check_values(examples, roles, config.columns, place)
    return Split(chosen, subset(examples, config.max_eval_samples, raw.ordered), raw.source, raw.fingerprint)


def load_rows(config: DataConfig, roles: Roles) -> tuple[Dataset, Dataset]:
    """The rows of the one file ``config.path``: as they are, and in columns named after roles.

    Raises:
        DataError: the file cannot be read, has no rows, or lacks a column.
    """
    raw = _read(config, roles, lambda: None, alone=True)
    rows = raw.splits["train"]
    if raw.ordered:  # lines of a text, which end where a row ends
        rows = table({"text": [line.rstrip("\r\n") for line in rows["text"]]}, raw.source)
    place = raw.places.get("train", raw.source)
    examples = assign(rows, roles, config.columns, place)
    check_values(examples, roles, config.columns, place)
    return rows, examples


def _assigned(raw: _Raw, roles: Roles, chosen: Mapping[str, str]) -> dict[str, Dataset]:
    """The splits in columns named after roles; all of them play the same ones."""
    named: dict[str, Dataset] = {}
    for name, split in raw.splits.items():
        what = "training" if name == "train" else name
        if not len(split):
            raise DataError(f"{raw.source}: the {what} split is empty")
        try:
            named[name] = assign(split, roles, chosen, raw.place(name))
        except DataError as error:
            raise DataError(f"{error}{_differences(raw, name)}") from error
        if set(named[name].column_names) != set(named["train"].column_names):
            there = [" and ".join(map(repr, named[split].column_names)) for split in (name, "train")]
            differ = _differences(raw, name)
            raise DataError(
                f"{raw.place(name)} has columns for {there[0]}, but the training split for {there[1]}{differ}"
            )
    return named


def _differences(raw: _Raw, name: str) -> str:
    """How the columns of a split differ from those of the training split."""
    there, train = raw.splits[name].column_names, raw.splits["train"].column_names
    lacks = ", ".join(column for column in train if column not in there)
    more = ", ".join(column for column in there if column not in train)
    said = [
        f"lacks {lacks}" if lacks else "",
        f"has {more} instead" if lacks and more else f"has {more}" if more else "",
    ]
    parts = [part for part in said if part]
    return f" (of the columns of the training split it {' and '.join(parts)})" if parts else ""


def _is_unlabelled(name: str, split: Dataset, roles: Roles) -> bool:
    """Whether this is the test split of a benchmark that keeps its labels secret."""
    column = roles.stratify_by
    return name == "test" and column in split.column_names and set(split[column][:]) <= {None, -1}


def _read(config: DataConfig, roles: Roles, builtin: Builtin, *, alone: bool = False) -> _Raw:
    """The splits as they are; ``alone``, where there may be none for training."""
    if config.path is None and config.train is None:
        examples = builtin()
        if examples is None:
            raise DataError("data.path is not set, and this task has no built-in data")
        content = json.dumps(examples, sort_keys=True).encode()
        made = {name: Dataset.from_list(rows) for name, rows in examples.items()}
        return _Raw(made, "built-in data", hashlib.sha256(content).hexdigest())
    root = Path(config.path).expanduser() if config.path is not None else Path()
    if config.path is not None and root.is_dir() and _is_saved(root):
        _refuse(config, "name", "revision", "format", "header", "separator", why=f"{root} holds a saved data set")
        return _from_splits(datasets.load_from_disk(str(root)), config, str(root), alone=alone)
    if root.exists():
        _refuse(config, "name", "revision", why="the data are local files")
        return _from_files(_local_files(root, config, alone=alone), config, roles)
    _refuse(config, "format", "header", "separator", why=f"{config.path} is not a local file or directory")
    return _from_hub(config, alone=alone)


def _refuse(config: DataConfig, *keys: str, why: str) -> None:
    """Say of keys that are set that they would do nothing."""
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


def _from_files(files: dict[str, list[Path]], config: DataConfig, roles: Roles) -> _Raw:
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
    return _Raw(splits, source, digest.hexdigest(), ordered, places)


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
        _refuse(config, "separator", why="there is no CSV file")
    if config.header is not None:
        if not kinds:
            _refuse(config, "header", why="there is no CSV or TSV file")
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


def _from_hub(config: DataConfig, *, alone: bool) -> _Raw:
    assert config.path is not None
    if config.path.startswith((".", "/", "~")) or Path(config.path).suffix.lower() in DATA_ENDINGS:
        raise DataError(f"data.path={config.path}: no such file or directory (from {Path.cwd()})")
    try:
        loaded = datasets.load_dataset(config.path, config.name, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data.path={config.path}: neither here nor readable on the Hub: {error}") from error
    return _from_splits(loaded, config, config.path, alone=alone)


def _from_splits(loaded: Any, config: DataConfig, source: str, *, alone: bool) -> _Raw:
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
    return _Raw(splits, source, hashlib.sha256(marks.encode()).hexdigest())


def _with_validation(raw: _Raw, roles: Roles, fraction: float) -> _Raw:
    train = raw.splits["train"]
    chosen = held_out(train, roles, fraction=fraction, ordered=raw.ordered)
    if not chosen or len(chosen) == len(train):
        whole = f" that share one {roles.group_by}" if chosen and roles.group_by else ""
        raise DataError(
            f"{raw.source}: {len(train)} examples{whole} are too few to hold out {fraction:g} for validation"
        )
    rest = sorted(set(range(len(train))) - set(chosen))
    return replace(raw, splits={**raw.splits, "train": train.select(rest), "validation": train.select(chosen)})


def _limit(config: DataConfig, split: str) -> int | None:
    return config.max_train_samples if split == "train" else config.max_eval_samples
