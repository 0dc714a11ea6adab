"""``eval``: the numbers that a run wrote, again and from its directory alone; and numbers on other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapterkit.train import layout
from adapterkit.train.run import run
from tests.commandline import command, in_new_process
from tests.training import short_run

TASKS = ["seq_cls", "token_cls", "causal_lm", "seq_2_seq_lm", "question_ans", "feature_extraction"]


def again(capsys, directory: Path, *words: str) -> dict:
    """What ``eval`` writes about a run."""
    to = directory / "eval.json"
    told = command(capsys, "eval", str(directory), "--to", str(to), *words)
    assert told.code == 0, told.err
    return json.loads(to.read_text())


def written(directory: Path, split: str) -> dict[str, float]:
    """The metrics of a split in a run's summary."""
    metrics = layout.read_summary(directory)["metrics"]
    if split == "test":
        return {name.removeprefix("test_"): value for name, value in metrics.items() if name.startswith("test_")}
    return {name: value for name, value in metrics.items() if not name.startswith("test_")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("outputs") / "run"
    run(short_run(), directory, quiet=True)
    return directory


def reviews(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n")
    return path


OWN = [("the plot was good", "positive"), ("the plot was bad", "negative"), ("good acting", "positive")]


@pytest.mark.parametrize("task", TASKS)
def test_the_very_numbers_of_the_run(task, capsys, tmp_path):
    run(short_run(task), tmp_path, quiet=True)
    found = again(capsys, tmp_path)
    assert found["split"] == "test"
    assert found["metrics"] == written(tmp_path, "test")
    assert again(capsys, tmp_path, "--split", "validation")["metrics"] == written(tmp_path, "validation")
    assert found["fingerprint"] == layout.read_manifest(tmp_path)["data"]["fingerprint"]


@pytest.mark.parametrize(
    ("task", "method", "changes"),
    [
        ("seq_cls", "lora", {"method": {"use_dora": True}}),
        ("seq_cls", "oft", {}),
        ("seq_cls", "adalora", {"method": {"init_r": 4, "target_r": 2, "total_step": 8}}),
        ("causal_lm", "prompt_tuning", {"method": {"num_virtual_tokens": 4}}),
        ("causal_lm", "prefix_tuning", {"method": {"num_virtual_tokens": 4}}),
        ("seq_cls", "p_tuning", {"method": {"num_virtual_tokens": 4}}),
        ("seq_cls", "lora", {"trainer": {"bf16": True}}),
        ("seq_cls", "lora", {"model": {"dtype": "bfloat16"}, "adapter_name": "mine"}),
    ],
    ids=["dora", "oft", "adalora", "prompt", "prefix", "p_tuning", "autocast", "bfloat16"],
)
def test_of_every_kind_of_adapter(task, method, changes, capsys, tmp_path):
    run(short_run(task, method, **changes), tmp_path, quiet=True)
    assert again(capsys, tmp_path)["metrics"] == written(tmp_path, "test")


def test_is_printed_and_leaves_the_run_as_it_was(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    told = command(capsys, "eval", str(finished))
    accuracy = written(finished, "test")["accuracy"]
    assert told.code == 0
    assert f"{accuracy:.4f} (higher is better)" in told.out
    assert "built-in data: 16 test" in told.out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_held_out_split_without_a_test_split(capsys, tmp_path):
    rows = [(f"the plot was {word} {number}", label) for number in range(20) for word, label in
            (("good", "positive"), ("bad", "negative"))]  # fmt: skip
    data = {"path": str(reviews(tmp_path / "mine.csv", rows))}
    run(short_run(data=data), tmp_path / "run", quiet=True)
    found = again(capsys, tmp_path / "run")
    assert (found["split"], found["examples"]) == ("validation", 4)
    assert found["metrics"] == written(tmp_path / "run", "validation")
    told = command(capsys, "eval", str(tmp_path / "run"), "--split", "test")
    assert (told.code, "has no test split. Splits: train, validation" in told.err) == (2, True)
    reviews(tmp_path / "mine.csv", [*rows, ("more", "positive")])
    assert "they have changed since" in command(capsys, "eval", str(tmp_path / "run")).err


def test_other_data_are_scored_whole(finished, capsys, tmp_path):
    other = reviews(tmp_path / "other.csv", OWN, "review,stars")
    words = [f"data.path={other}", "data.columns={text: review, label: stars}"]
    found = again(capsys, finished, *words)
    assert (found["examples"], found["source"]) == (3, str(other))
    assert found["metrics"].keys() == written(finished, "test").keys()
    assert again(capsys, finished, *words, "data.max_eval_samples=2")["examples"] == 2


def test_one_class_alone_keeps_the_classes_of_the_run(finished, capsys, tmp_path):
    good = again(capsys, finished, f"data.path={reviews(tmp_path / 'good.csv', OWN[:1])}")
    bad = again(capsys, finished, f"data.path={reviews(tmp_path / 'bad.csv', [(OWN[0][0], 'negative')])}")
    assert good["metrics"]["accuracy"] + bad["metrics"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\nfine,excellent\n", ["labels that training has not: 'excellent'", "Labels: negative, positive"]),
        ("text,lable\nfine,positive\nbad,negative\n", ["no column for 'label'; did you mean 'lable'?"]),
        ("text,label\n", ["no rows"]),
        ("", ["empty"]),
    ],
    ids=["label", "column", "header", "nothing"],
)
def test_data_that_cannot_be_scored(content, words, finished, capsys, tmp_path):
    (tmp_path / "other.csv").write_text(content)
    told = command(capsys, "eval", str(finished), f"data.path={tmp_path / 'other.csv'}", "data.header=true")
    assert told.code == 2
    assert all(word in told.err for word in words), told.err


def test_tags_that_training_has_not(capsys, tmp_path):
    run(short_run("token_cls"), tmp_path / "run", quiet=True)
    (tmp_path / "other.conll").write_text("Anna B-NOBODY\nsings O\n")
    told = command(capsys, "eval", str(tmp_path / "run"), f"data.path={tmp_path / 'other.conll'}")
    assert (told.code, "tags that training has not: B-NOBODY" in told.err) == (2, True)


def test_numbers_of_a_regression(capsys, tmp_path):
    rows = [(f"{'good ' * (number % 5)}plot {number}", str(number % 5 + 0.5)) for number in range(30)]
    data = {"path": str(reviews(tmp_path / "mine.csv", rows))}
    run(short_run(data=data), tmp_path / "run", quiet=True)
    found = again(capsys, tmp_path / "run")
    assert found["metric"] == "pearson"
    assert found["metrics"] == written(tmp_path / "run", "validation")
    other = reviews(tmp_path / "other.csv", [("good", "4")])
    assert again(capsys, tmp_path / "run", f"data.path={other}")["examples"] == 1
    told = command(capsys, "eval", str(tmp_path / "run"), f"data.path={reviews(other, OWN)}")
    assert (told.code, "labels must be numbers, as in training" in told.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.r=4"], "method.r: eval sets no such key"),
        (["trainer.use_cp=true"], "did you mean 'trainer.use_cpu'?"),
        (["data.pth=x"], "data.pth: unknown key; did you mean 'data.path'?"),
        (["data.max_length=long"], "data.max_length: "),
        (["data.path=nowhere.csv"], "nowhere.csv: no such file or directory"),
        (["data.max_length=8,16"], "eval takes one value for a key"),
        (["~data.columns"], "eval takes one value for a key"),
        (["data"], "cannot read 'data': expected key=value"),
        (["--to=."], ". is a directory"),
        (["--to=file/scores.json"], "file is a file"),
        (["--splt=test"], "eval has no flag '--splt'; did you mean '--split'?"),
    ],
)
def test_what_cannot_be_asked_for(words, said, finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    told = command(capsys, "eval", str(finished), *words)
    assert (told.code, told.out) == (2, "")
    assert said in told.err, told.err


def test_mistakes_cost_no_import_of_torch(finished, tmp_path):
    told = in_new_process("-X", "importtime", "-m", "adapterkit", "eval", str(finished), "method.r=4", cwd=tmp_path)
    assert (told.returncode, "| torch\n" in told.stderr) == (2, False)


def test_a_run_that_has_no_adapter(finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "failed", ignore=shutil.ignore_patterns("adapter"))
    manifest = {**layout.read_manifest(tmp_path / "failed"), "status": "failed"}
    (tmp_path / "failed" / layout.MANIFEST).write_text(json.dumps(manifest))
    told = command(capsys, "eval", str(tmp_path / "failed"))
    assert (told.code, "has no adapter: its status is failed" in told.err) == (1, True)
    for place, why in {"nothing": "no such directory", "": "it has no config.yaml"}.items():
        told = command(capsys, "eval", str(tmp_path / place))
        assert (told.code, f"is not the directory of a run: {why}" in told.err) == (2, True)


def test_paths_of_the_run_are_found_from_elsewhere(capsys, tmp_path, monkeypatch):
    rows = [(f"the plot was {word} {number}", label) for number in range(20) for word, label in
            (("good", "positive"), ("bad", "negative"))]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    reviews(tmp_path / "mine.csv", rows)
    run(short_run(data={"path": "mine.csv"}), tmp_path / "run", quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert again(capsys, tmp_path / "run")["metrics"] == written(tmp_path / "run", "validation")
    (tmp_path / "mine.csv").unlink()
    told = command(capsys, "eval", str(tmp_path / "run"))
    assert (told.code, "mine.csv: no such file or directory" in told.err) == (2, True)
    other = reviews(tmp_path / "other.csv", OWN)
    assert again(capsys, tmp_path / "run", f"data.path={other}")["examples"] == 3


def test_a_run_that_says_nothing_of_what_it_learnt_reads_its_data_again(finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    manifest = layout.read_manifest(tmp_path / "run")
    del manifest["learnt"]
    (tmp_path / "run" / layout.MANIFEST).write_text(json.dumps(manifest))
    assert again(capsys, tmp_path / "run")["metrics"] == written(finished, "test")
