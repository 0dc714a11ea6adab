"""From a configuration to splits with the columns of a task."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from adapterkit.config.run import DataConfig
from adapterkit.errors import DataError
from adapterkit.train.columns import Roles
from adapterkit.train.data import Data, load_data

ROLES = Roles(
    default={"text": "text", "text_pair": "text_pair", "label": "label"},
    required=("text", "label"),
    also={"text": ("sentence",)},
    stratify_by="label",
)


def rows(count: int, offset: int = 0) -> str:
    return "".join(f"sentence {index + offset}\t{index % 4 == 0:d}\n" for index in range(count))


def load(path: Path | None, roles: Roles = ROLES, **options: object) -> Data:
    return load_data(DataConfig(path=None if path is None else str(path), **options), roles)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count, offset in (("train.tsv", 80, 0), ("dev.tsv", 8, 100), ("test.tsv", 4, 200)):
        (tmp_path / name).write_text(rows(count, offset))
    (tmp_path / "README.md").write_text("not data")
    return tmp_path


def test_directory_with_files_by_split(folder: Path) -> None:
    data = load(folder)
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 80, "validation": 8, "test": 4}
    assert data.train.column_names == ["text", "label"]
    assert data.validation["text"][0] == "sentence 100"


@pytest.mark.parametrize("alias", ["validation", "valid", "val", "dev"])
def test_names_of_the_validation_file(tmp_path: Path, alias: str) -> None:
    (tmp_path / "train.tsv").write_text(rows(8))
    (tmp_path / f"{alias}.tsv").write_text(rows(4, 50))
    assert load(tmp_path).validation["text"][0] == "sentence 50"


def test_shards_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "train-00001-of-00002.tsv").write_text(rows(4, 4))
    (tmp_path / "train-00000-of-00002.tsv").write_text(rows(4))
    (tmp_path / "val.tsv").write_text(rows(4))
    assert list(load(tmp_path).train["text"]) == [f"sentence {index}" for index in range(8)]


def test_named_files(folder: Path) -> None:
    (folder / "mine.tsv").write_text(rows(6, 300))
    data = load(folder, train="mine.tsv", validation=str(folder / "dev.tsv"))
    assert (data.train["text"][0], len(data.validation)) == ("sentence 300", 8)
    assert len(load(None, train=str(folder / "mine.tsv"), validation=str(folder / "dev.tsv")).train) == 6


def test_single_file_gets_a_validation_split(folder: Path) -> None:
    data = load(folder / "train.tsv", validation_fraction=0.25)
    assert Counter(data.validation["label"]) == {"0": 15, "1": 5}  # the shares of the whole
    assert not set(data.validation["text"]) & set(data.train["text"])
    assert len(data.train) + len(data.validation) == 80
    again = load(folder / "train.tsv", validation_fraction=0.25)
    assert list(again.validation["text"]) == list(data.validation["text"])


def test_groups_stay_together(tmp_path: Path) -> None:
    content = [{"text": f"{index}", "label": f"context {index // 5}"} for index in range(50)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    roles = Roles(default=ROLES.default, required=ROLES.required, group_by="label")
    data = load(tmp_path / "a.json", roles, validation_fraction=0.2)
    assert Counter(Counter(data.validation["label"]).values()) == {5: 2}
    assert not set(data.validation["label"]) & set(data.train["label"])


def test_end_of_a_text_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {index}\n" for index in range(20)))
    data = load(tmp_path / "a.txt", Roles(default={"text": "text"}, required=("text",)))
    assert list(data.validation["text"]) == ["line 18\n", "line 19\n"]


def test_too_few_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(rows(2))
    with pytest.raises(DataError, match=r"2 examples are too few to hold out 0\.1"):
        load(tmp_path / "a.tsv")


def test_subsets(folder: Path) -> None:
    data = load(folder, max_train_samples=10, max_eval_samples=3)
    assert [len(split) for split in data.splits().values()] == [10, 3, 3]
    assert list(data.train["text"]) == list(load(folder, max_train_samples=10).train["text"])
    assert list(data.train["text"]) != list(load(folder).train["text"])[:10]


def test_fingerprint_is_of_the_content(folder: Path) -> None:
    before = load(folder).fingerprint
    assert load(folder, max_train_samples=5).fingerprint == before
    (folder / "dev.tsv").write_text(rows(7))
    assert load(folder).fingerprint != before


def test_nothing_is_left_behind(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    load(folder)
    assert sorted(folder.rglob("*")) == before


class TestColumns:
    def table(self, folder: Path, header: str) -> Path:
        (folder / "a.csv").write_text(header + "\n" + "".join(f"x{i},y{i},{i % 2}\n" for i in range(40)))
        return folder / "a.csv"

    def test_mapped(self, tmp_path: Path) -> None:
        data = load(self.table(tmp_path, "review,other,stars"), columns={"text": "review", "label": "stars"})
        assert data.train.column_names == ["text", "label"]

    def test_other_usual_names(self, tmp_path: Path) -> None:
        data = load(self.table(tmp_path, "sentence,other,label"))
        assert set(data.train["text"]) <= {f"x{i}" for i in range(40)}

    def test_exchanged(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "text_pair,text,label")
        data = load(path, columns={"text": "text_pair", "text_pair": "text"})
        assert data.train["text"][0].startswith("x")

    def test_missing_column_names_what_is_there(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "review,other,label")
        with pytest.raises(DataError) as caught:
            load(path)
        for part in (str(path), "no column for 'text'", "data.columns.text", "review, other, label"):
            assert part in str(caught.value)

    def test_misspelt_column(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data\.columns\.text=reveiw: .*did you mean 'review'\?"):
            load(self.table(tmp_path, "review,other,label"), columns={"text": "reveiw"})

    def test_misspelt_role(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data\.columns\.txt: .*did you mean 'text'\?"):
            load(self.table(tmp_path, "review,other,label"), columns={"txt": "review"})

    def test_one_column_for_two_roles(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="are both read from column 'label'"):
            load(self.table(tmp_path, "review,other,label"), columns={"text": "label"})

    def test_headerless_columns_by_position(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("".join(f"left {i},right {i},{i % 2}\n" for i in range(40)))
        data = load(tmp_path / "a.csv")
        assert data.train.column_names == ["text", "text_pair", "label"]


class TestMissing:
    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data\.path=.*nowhere: no such file or directory"):
            load(tmp_path / "nowhere")

    def test_training_split(self, tmp_path: Path) -> None:
        for name in ("one.csv", "other.csv"):
            (tmp_path / name).write_text("text,label\na,1\n")
        with pytest.raises(DataError, match=r"no file of a training split .* found: one\.csv, other\.csv"):
            load(tmp_path)

    def test_named_file(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"data\.validation=dve\.tsv: no such file .*did you mean 'dev\.tsv'\?"):
            load(folder, validation="dve.tsv")

    def test_hub_without_network(self) -> None:
        with pytest.raises(DataError, match=r"data\.path=nobody/nothing: neither here nor readable on the Hub"):
            load_data(DataConfig(path="nobody/nothing"), ROLES)

    def test_no_built_in_data(self) -> None:
        with pytest.raises(DataError, match="no built-in data"):
            load_data(DataConfig(), ROLES)


class TestSavedDatasets:
    def saved(self, folder: Path, labels: list[int]) -> Path:
        features = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
        train = Dataset.from_dict({"sentence": ["a", "b"] * 10, "label": [0, 1] * 10}, features)
        test = Dataset.from_dict({"sentence": ["c", "d"], "label": labels}, features)
        DatasetDict({"train": train, "test": test}).save_to_disk(str(folder))
        return folder

    def test_read_back(self, tmp_path: Path) -> None:
        datasets.disable_progress_bars()
        data = load(self.saved(tmp_path / "set", [0, 1]))
        assert data.test is not None
        assert isinstance(data.train.features["label"], ClassLabel)

    def test_secret_test_labels_are_left_out(self, tmp_path: Path) -> None:
        datasets.disable_progress_bars()
        assert load(self.saved(tmp_path / "set", [-1, -1])).test is None

    def test_split_that_is_not_there(self, tmp_path: Path) -> None:
        datasets.disable_progress_bars()
        with pytest.raises(DataError, match=r"data\.train=tain: .*did you mean 'train'\?.* Splits: train, test"):
            load(self.saved(tmp_path / "set", [0, 1]), train="tain")


def test_values_of_different_types(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a", "label": 1}, {"text": "b", "label": "x"}]))
    with pytest.raises(DataError, match="different types"):
        load(tmp_path / "a.json")


def test_the_only_file_of_a_directory_is_the_training_split(tmp_path):
    (tmp_path / "reviews.tsv").write_text(rows(40))
    assert len(load(path=str(tmp_path)).train) == 36
