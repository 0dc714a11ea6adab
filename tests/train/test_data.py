"""From a configuration to splits with the columns of a task."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pydantic import ValidationError

from adapterkit.config.run import DataConfig
from adapterkit.errors import DataError
from adapterkit.train.columns import Roles
from adapterkit.train.data import Data, load_data

ROLES = Roles(
    texts=("text", "text_pair"),
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


def test_named_file_beside_a_single_one(folder: Path) -> None:
    data = load(folder / "train.tsv", validation="dev.tsv", test="test.tsv")
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 80, "validation": 8, "test": 4}


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


def test_groups_of_one(tmp_path: Path) -> None:
    content = [{"text": f"{index}", "label": f"context {min(index, 196)}"} for index in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    roles = Roles(default=ROLES.default, required=ROLES.required, group_by="label")
    data = load(tmp_path / "a.json", roles)
    assert 19 <= len(data.validation) <= 25
    assert not set(data.validation["label"]) & set(data.train["label"])


def test_many_small_classes(tmp_path: Path) -> None:
    content = [{"text": f"{index}", "label": f"class {index // 4}"} for index in range(100)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert len(load(tmp_path / "a.json").validation) == 10


def test_no_class_is_held_out_whole(tmp_path: Path) -> None:
    content = [{"text": f"{index}", "label": f"class {index // 2}"} for index in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = load(tmp_path / "a.json", validation_fraction=0.2)
    assert len(data.validation) == 40
    assert set(data.validation["label"]) <= set(data.train["label"])


def test_end_of_a_text_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {index}\n" for index in range(20)))
    data = load(tmp_path / "a.txt", Roles(default={"text": "text"}, required=("text",)))
    assert list(data.validation["text"]) == ["line 18\n", "line 19\n"]


def test_too_few_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(rows(2))
    with pytest.raises(DataError, match=r"2 examples are too few to hold out 0\.1"):
        load(tmp_path / "a.tsv")


def test_one_group_cannot_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "film,1\n" * 20)
    roles = Roles(default=ROLES.default, required=ROLES.required, group_by="label")
    with pytest.raises(DataError, match=r"20 examples that share one label are too few to hold out 0\.1"):
        load(tmp_path / "a.csv", roles)


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

    def test_no_column_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"messages": "a"}\n' * 20)
        with pytest.raises(DataError, match=r"\(train\): no column for any of text, prompt\. .* Columns: messages$"):
            load(tmp_path / "a.jsonl", Roles(default={"text": "text", "prompt": "prompt"}, required=()))

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
    with pytest.raises(DataError, match="column 'label' begins with 1, but row 2 has 'x', of another type"):
        load(tmp_path / "a.json")


def test_the_only_file_of_a_directory_is_the_training_split(tmp_path):
    (tmp_path / "reviews.tsv").write_text(rows(40))
    assert len(load(path=str(tmp_path)).train) == 36


class TestHeaders:
    LINES = ("a fine film,pos", "a dull film,neg", "lovely,pos", "boring,neg")

    def folder(self, directory: Path, train: str | None, dev: str | None, *, end: str = "\n", mark: str = "") -> Path:
        for name, first in (("train.csv", train), ("dev.csv", dev)):
            lines = [first, *self.LINES] if first else list(self.LINES)
            ending, begin = (end, mark) if name == "dev.csv" else ("\n", "")
            (directory / name).write_bytes((begin + "".join(line + ending for line in lines)).encode())
        return directory

    @pytest.mark.parametrize(("end", "mark"), [("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff")])
    def test_ends_and_marks_do_not_count(self, tmp_path: Path, end: str, mark: str) -> None:
        data = load(self.folder(tmp_path, "text,label", "text,label", end=end, mark=mark))
        assert [list(data.train["label"]), list(data.validation["label"])] == [["pos", "neg", "pos", "neg"]] * 2
        assert list(data.validation["text"]) == list(data.train["text"])

    def test_columns_in_another_order_or_more_of_them(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "text,label", None)
        (tmp_path / "dev.csv").write_text("id,label,text\n" + "".join(f"x{i},pos,film {i}\n" for i in range(3)))
        data = load(tmp_path)
        assert list(data.validation["text"]) == ["film 0", "film 1", "film 2"]
        assert set(data.validation["label"]) == {"pos"}

    def test_other_names_are_named(self, tmp_path: Path) -> None:
        said = r"dev\.csv \(validation\): no column for 'text'.*it lacks text, label and has Text, Label instead"
        with pytest.raises(DataError, match=said):
            load(self.folder(tmp_path, "text,label", "Text,Label"))

    def test_other_roles_are_named(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "text,label", None)
        (tmp_path / "dev.csv").write_text("text,text_pair,label\na,b,pos\nc,d,neg\n")
        said = r"dev\.csv \(validation\) has columns for 'text' and 'text_pair' and 'label', but .* it has text_pair\)"
        with pytest.raises(DataError, match=said):
            load(tmp_path)

    def test_without_any(self, tmp_path: Path) -> None:
        self.folder(tmp_path, None, None)
        (tmp_path / "dev.csv").write_text("a great film,pos\nnot so good,neg\n")  # by itself it might have one
        data = load(tmp_path)
        assert (len(data.train), len(data.validation)) == (4, 2)

    def test_in_one_file_alone(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"dev\.csv has a header line \(text, label\), but .*train\.csv begins with"
        ):
            load(self.folder(tmp_path, None, "text,label"))

    @pytest.mark.parametrize(("mark", "separator"), [(";", None), (";", "semicolon"), ("\t", None), ("|", "pipe")])
    def test_of_cells_that_no_comma_separates(self, tmp_path: Path, mark: str, separator: str | None) -> None:
        rows = [("text", "label"), *(("so, so", "1"), ("good", "0")) * 15]
        (tmp_path / "train.csv").write_text("".join(f"{text}{mark}{label}\n" for text, label in rows))
        data = load(tmp_path, separator=separator)
        assert set(data.train["text"]) == {"so, so", "good"}
        assert set(data.train["label"]) == {"0", "1"}

    def test_shards_with_other_columns(self, tmp_path: Path) -> None:
        (tmp_path / "train-0.csv").write_text("text,label\na,1\nb,0\n")
        (tmp_path / "train-1.csv").write_text("text,stars\na,1\nb,0\n")
        with pytest.raises(
            DataError, match=r"train-1\.csv has the columns text, stars, but .*train-0\.csv has text, label"
        ):
            load(tmp_path)


class TestKeysThatWouldDoNothing:
    @pytest.mark.parametrize("key", ["name", "revision", "format", "header", "separator", "validation", "test"])
    def test_without_data(self, key: str) -> None:
        value = {"format": "csv", "header": True, "separator": "tab"}.get(key, "x")
        with pytest.raises(ValidationError, match=rf"{key}={value} would do nothing without data\.path or data\.train"):
            DataConfig(**{key: value})

    @pytest.mark.parametrize("key", ["name", "revision"])
    def test_of_the_hub_beside_files(self, folder: Path, key: str) -> None:
        with pytest.raises(DataError, match=rf"data\.{key}=x would do nothing: the data are local files"):
            load(folder, **{key: "x"})

    def test_of_tables_beside_others(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b"}\n' * 30)
        with pytest.raises(DataError, match=r"data\.header=True would do nothing: there is no CSV or TSV file"):
            load(tmp_path / "a.jsonl", header=True)
        with pytest.raises(DataError, match=r"data\.separator=tab would do nothing: there is no CSV file"):
            load(tmp_path / "a.jsonl", separator="tab")

    def test_of_a_share_beside_a_split(self, tmp_path: Path) -> None:
        for name in ("train", "dev"):
            (tmp_path / f"{name}.csv").write_text("text,label\na,1\nb,0\n")
        with pytest.raises(
            DataError, match=r"data\.validation_fraction=0\.3 would do nothing: .* has a validation split"
        ):
            load(tmp_path, validation_fraction=0.3)

    def test_of_files_beside_the_hub(self) -> None:
        with pytest.raises(DataError, match=r"data\.format=csv would do nothing: nobody/nothing is not a local file"):
            load_data(DataConfig(path="nobody/nothing", format="csv"), ROLES)


@pytest.mark.parametrize(("name", "content"), [("test.csv", "text,label\n"), ("test.jsonl", ""), ("test.tsv", "")])
def test_empty_split_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"film {index},{index % 2}\n" for index in range(40)))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: (no rows|empty)"):
        load(tmp_path / "train.csv", test=name)


class TestValues:
    def lines(self, directory: Path, **changes: object) -> Path:
        rows = [{"text": f"film {index}", "label": "yn"[index % 2]} for index in range(40)]
        for name, value in changes.items():
            rows[7][name] = value  # type: ignore[assignment]
        (directory / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return directory / "a.jsonl"

    @pytest.mark.parametrize("label", [None, "", " ", "NaN"])
    def test_missing_label(self, tmp_path: Path, label: object) -> None:
        said = rf"a\.jsonl \(train\): 'label' must hold labels, but row 8 has {label!r}$"
        with pytest.raises(DataError, match=said):
            load(self.lines(tmp_path, label=label))

    def test_number_that_is_none(self, tmp_path: Path) -> None:
        rows = [{"text": "a", "label": float("nan") if index % 10 == 3 else index / 7} for index in range(80)]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = r"but row 4 has nan, row 14 has nan, row 24 has nan, row 34 has nan, row 44 has nan, and 3 more"
        with pytest.raises(DataError, match=said):
            load(tmp_path / "a.jsonl")

    def test_text_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.jsonl \(train\): 'text' must hold texts, but row 8 has None$"):
            load(self.lines(tmp_path, text=None))

    def test_column_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {index}, "label": "b"}}\n' for index in range(40)))
        with pytest.raises(DataError, match=r"'text' \(column 'n'\) must hold texts, but row 1 has 0, row 2 has 1"):
            load(tmp_path / "a.jsonl", columns={"text": "n"})

    def test_scores(self, tmp_path: Path) -> None:
        roles = Roles(default={"text": "text", "score": "score"}, required=("text", "score"), numbers=("score",))
        with pytest.raises(
            DataError, match=r"'score' \(column 'label'\) must hold numbers, but row 1 has 'y', .* and 35 more"
        ):
            load(self.lines(tmp_path, label="many"), roles, columns={"score": "label"})
