"""Splits and columns: what is found, what is made, and what is missing."""

from __future__ import annotations

from collections import Counter

import pytest

from adapterkit.config.run import DataConfig
from adapterkit.errors import DataError
from adapterkit.registry import resolve, tasks
from adapterkit.train.data import load_data


def load(task="seq_cls", **settings):
    config = tasks[task]
    pipeline = resolve(config.pipeline)
    return load_data(DataConfig(**settings), pipeline.roles(config(name=task)), pipeline.builtin)


def rows(count, start=0):
    return "".join(f"text number {i}\t{'yes' if i % 4 == 0 else 'no'}\n" for i in range(start, start + count))


def test_a_directory_with_files_named_after_splits(tmp_path):
    for name, count in {"train.tsv": 8, "dev.tsv": 4, "test.tsv": 2}.items():
        (tmp_path / name).write_text(rows(count, start=count))
    data = load(path=str(tmp_path))
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 8, "validation": 4, "test": 2}
    assert data.train[0] == {"text": "text number 8", "label": "yes"}


def test_a_validation_split_is_made_fair_disjoint_and_the_same_again(tmp_path):
    (tmp_path / "all.tsv").write_text(rows(200))
    first, second = (load(path=str(tmp_path / "all.tsv"), validation_fraction=0.2) for _ in range(2))
    assert first.validation["text"] == second.validation["text"]
    assert not set(first.train["text"]) & set(first.validation["text"])
    assert len(first.train) + len(first.validation) == 200
    assert Counter(first.validation["label"]) == {"yes": 10, "no": 30}


def test_samples_are_limited(tmp_path):
    (tmp_path / "all.tsv").write_text(rows(100))
    data = load(path=str(tmp_path / "all.tsv"), max_train_samples=7, max_eval_samples=3)
    assert (len(data.train), len(data.validation)) == (7, 3)


def test_columns_are_mapped(tmp_path):
    (tmp_path / "a.csv").write_text("id,body,stars\n" + "".join(f"{i},text {i},{i % 2}\n" for i in range(20)))
    data = load(path=str(tmp_path / "a.csv"), columns={"text": "body", "label": "stars"})
    assert set(data.train.column_names) == {"text", "label"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"text": "bdy"}}, "bdy.*(did you mean|body)"),
        ({"columns": {"txt": "body"}}, "txt"),
        ({"validation": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_is_missing_is_named(tmp_path, settings, message):
    (tmp_path / "a.csv").write_text("id,body,stars\n" + "".join(f"{i},text {i},{i % 2}\n" for i in range(20)))
    with pytest.raises(DataError, match=message):
        load(path=str(tmp_path / "a.csv"), **settings)


def test_a_path_that_is_not_there():
    with pytest.raises(DataError, match="no such file or directory"):
        load(path="./not-there.csv")


@pytest.mark.parametrize(
    "task", ["seq_cls", "token_cls", "causal_lm", "seq_2_seq_lm", "question_ans", "feature_extraction"]
)
def test_built_in_data_is_the_same_every_time_and_shares_no_example(task):
    first, second = load(task), load(task)
    assert first.fingerprint == second.fingerprint
    seen = [repr(row) for split in first.splits().values() for row in split]
    assert len(set(seen)) == len(seen)


def test_the_built_in_classes_are_even():
    data = load("seq_cls")
    for split in data.splits().values():
        counts = Counter(split["label"])
        assert max(counts.values()) == min(counts.values())
