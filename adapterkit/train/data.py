"""Data of a run: built in, from local files, or from the Hub; its columns renamed to the roles that a task knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from datasets import Dataset

from adapterkit.config.run import DataConfig
from adapterkit.errors import DataError
from adapterkit.train.columns import Roles, assign
from adapterkit.train.shares import held_out, subset
from adapterkit.train.sources import Builtin, Raw, read, refuse, table
from adapterkit.train.values import check_values


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


def load_data(config: DataConfig, roles: Roles, builtin: Builtin = lambda: None) -> Data:
    """The splits that a configuration means.

    Args:
        config: where from.
        roles: the columns that the task needs, and how a validation split is to be made.
        builtin: makes the task's own examples by split, used where ``config`` names no data.

    Raises:
        DataError: a file, split or column is not there.
    """
    raw = read(config, roles, builtin)
    named = _assigned(raw, roles, config.columns)
    raw = replace(raw, splits={name: split for name, split in named.items() if not _is_unlabelled(name, split, roles)})
    for name, split in raw.splits.items():
        check_values(split, roles, config.columns, raw.place(name))
    if "validation" in raw.splits:
        refuse(config, "validation_fraction", why=f"{raw.source} has a validation split")
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
    raw = read(config, roles, lambda: None, alone=True)
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
    raw = read(config, roles, lambda: None, alone=True)
    rows = raw.splits["train"]
    if raw.ordered:  # lines of a text, which end where a row ends
        rows = table({"text": [line.rstrip("\r\n") for line in rows["text"]]}, raw.source)
    place = raw.places.get("train", raw.source)
    examples = assign(rows, roles, config.columns, place)
    check_values(examples, roles, config.columns, place)
    return rows, examples


def _assigned(raw: Raw, roles: Roles, chosen: Mapping[str, str]) -> dict[str, Dataset]:
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


def _differences(raw: Raw, name: str) -> str:
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


def _with_validation(raw: Raw, roles: Roles, fraction: float) -> Raw:
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
