"""``predict``: rows without answers in, the same rows with what the adapter says of them out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adapterkit.registry import resolve, tasks
from adapterkit.tasks.seq_cls.pipeline import SeqClsPipeline
from adapterkit.train import layout, metrics
from adapterkit.train.data import load_data
from adapterkit.train.pipeline import Pipeline
from adapterkit.train.reload import load_config, load_run
from adapterkit.train.run import run
from tests.commandline import command, in_new_process
from tests.training import short_run

TASKS = ["seq_cls", "token_cls", "causal_lm", "seq_2_seq_lm", "question_ans", "feature_extraction"]


def predicted(capsys, directory: Path, rows, *words: str) -> list[dict]:
    """What ``predict`` writes for a file, or for rows."""
    place = directory / "rows.jsonl" if isinstance(rows, list) else rows
    if isinstance(rows, list):
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    to = directory / "said.jsonl"
    told = command(capsys, "predict", str(directory), "--input", str(place), "--to", str(to), *words)
    assert told.code == 0, told.err
    return [json.loads(line) for line in to.read_text().splitlines()]


def test_split(directory: Path) -> list[dict]:
    """The rows that a run was tested on."""
    config = load_config(directory)
    pipeline = resolve(config.task.pipeline)
    return load_data(config.data, pipeline.roles(config.task), pipeline.builtin).test.to_list()


test_split.__test__ = False


def score(task: str, said: list[dict], rows: list[dict]) -> dict[str, float]:
    """The metrics of what was said."""
    if task == "seq_cls":
        names = [[row["prediction"] for row in said], [row["label"] for row in rows]]
        return metrics.classification(*(np.unique(column, return_inverse=True)[1] for column in names))
    if task == "token_cls":
        return metrics.entities([row["prediction"] for row in said], [row["tags"] for row in rows])
    if task == "question_ans":
        return metrics.answers([row["prediction"] for row in said], [row["answers"]["text"] for row in rows])
    if task == "seq_2_seq_lm":
        return metrics.written([row["prediction"] for row in said], [row["target"] for row in rows])
    return metrics.regression([row["similarity"] for row in said], [row["score"] for row in rows])


ANSWERS = {"label", "tags", "answers", "target", "score", "completion"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes one run of a task."""
    made: dict[str, Path] = {}

    def run_of(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task) / "run"
            run(short_run(task, trainer={"max_steps": 24, "learning_rate": 0.02}), made[task], quiet=True)
        return made[task]

    return run_of


@pytest.mark.parametrize("task", [task for task in TASKS if task != "causal_lm"])
def test_predictions_score_what_the_run_wrote(task, runs, capsys):
    rows = test_split(runs(task))
    given = [{key: value for key, value in row.items() if key not in ANSWERS} for row in rows]
    said = predicted(capsys, runs(task), given)
    assert [{key: row[key] for key in mine} for row, mine in zip(said, given, strict=True)] == given
    expected = layout.read_summary(runs(task))["metrics"]
    found = score(task, said, rows)
    assert len(found) > 1
    for name in found.keys() - {"mse"}:
        assert found[name] == pytest.approx(expected[f"test_{name}"], abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_size_of_a_batch_changes_nothing(task, runs, capsys):
    roles = {role for role in tasks[task].default_columns} - ANSWERS
    rows = [{key: value for key, value in row.items() if key in roles} for row in test_split(runs(task))]
    together = predicted(capsys, runs(task), rows)
    alone = predicted(capsys, runs(task), rows, "trainer.per_device_eval_batch_size=1")
    names = ("prediction",) if task != "feature_extraction" else ("similarity",)
    for name in names:
        if isinstance(together[0][name], float):
            assert [row[name] for row in alone] == pytest.approx([row[name] for row in together], abs=1e-5)
        else:
            assert [row[name] for row in alone] == [row[name] for row in together]


def test_answers_in_the_file_are_kept_and_not_looked_at(runs, capsys):
    rows = test_split(runs("seq_cls"))
    said = predicted(capsys, runs("seq_cls"), [{**row, "label": "nonsense", "more": [1]} for row in rows])
    assert said[0].keys() == {*rows[0], "label", "more", "prediction", "probabilities"}
    assert {row["label"] for row in said} == {"nonsense"}
    assert {row["prediction"] for row in said} <= {"negative", "positive"}
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in said)
    assert all(max(row["probabilities"], key=row["probabilities"].get) == row["prediction"] for row in said)


def test_csv_in_and_out(runs, capsys, tmp_path):
    (tmp_path / "mine.csv").write_text('review,who\n"good, really",me\nbad,"you ""two"""\n')
    to = tmp_path / "said.csv"
    words = ["--input", str(tmp_path / "mine.csv"), "--to", str(to), "data.columns.text=review"]
    told = command(capsys, "predict", str(runs("seq_cls")), *words)
    assert told.code == 0, told.err
    assert told.out == f"2 rows with prediction, probabilities in {to}\n"
    rows = list(csv.DictReader(to.read_text().splitlines()))
    assert list(rows[0]) == ["review", "who", "prediction", "probabilities.negative", "probabilities.positive"]
    assert [row["who"] for row in rows] == ["me", 'you "two"']
    assert rows[0]["review"] == "good, really"


def test_lines_of_a_text_are_rows(runs, capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("the plot was good\n\nbad\n")
    said = predicted(capsys, runs("seq_cls"), tmp_path / "mine.txt")
    assert [row["text"] for row in said] == ["the plot was good", "", "bad"]
    said = predicted(capsys, runs("token_cls"), tmp_path / "mine.txt", "data.columns.tokens=text")
    assert [len(row["prediction"]) for row in said] == [4, 0, 1]


def test_columns_of_the_run(capsys, tmp_path):
    lines = [f"plot {number},{'good' if number % 2 else 'bad'},{number % 2}" for number in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["first,second,stars", *lines]))
    columns = {"text": "first", "text_pair": "second", "label": "stars"}
    run(short_run(data={"path": str(tmp_path / "mine.csv"), "columns": columns}), tmp_path / "run", quiet=True)
    (tmp_path / "mine.csv").unlink()
    said = predicted(capsys, tmp_path / "run", [{"first": "plot 1", "second": "good"}])
    assert said[0]["prediction"] in ("0", "1")
    place = tmp_path / "other.jsonl"
    place.write_text('{"first": "plot 1"}')
    words = ["--input", str(place), "--to", str(tmp_path / "out.csv")]
    told = command(capsys, "predict", str(tmp_path / "run"), *words)
    assert told.code == 2
    assert "data.columns.text_pair=second" in told.err
    assert not (tmp_path / "out.csv").exists()


def test_numbers_of_a_regression(capsys, tmp_path):
    lines = [f"{'good ' * (number % 5)}plot {number},{number % 5 + 0.5}" for number in range(30)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *lines]))
    run(short_run(data={"path": str(tmp_path / "mine.csv")}), tmp_path / "run", quiet=True)
    said = predicted(capsys, tmp_path / "run", [{"text": "good plot"}, {"text": "plot"}])
    assert all(isinstance(row["prediction"], float) and "probabilities" not in row for row in said)


def test_tags_stand_by_their_words(runs, capsys):
    words = test_split(runs("token_cls"))[0]["tokens"]
    said = predicted(capsys, runs("token_cls"), [{"tokens": words * 5}, {"tokens": words}], "data.max_length=12")
    tags = said[0]["prediction"]
    assert len(tags) == 5 * len(words)
    assert tags[-1] is None
    assert tags[0] is not None
    assert None not in said[1]["prediction"][: 12 - 2 if len(words) > 12 else 3]


def test_spans_of_answers(runs, capsys):
    rows = [{"question": row["question"], "context": row["context"]} for row in test_split(runs("question_ans"))]
    for row in predicted(capsys, runs("question_ans"), rows):
        begin, end = row["span"]
        assert row["context"][begin:end] == row["prediction"] != ""


def test_spans_by_a_decoder_whose_tokenizer_pads_on_the_left(capsys, tmp_path):
    changes = {"model": {"name_or_path": "builtin:llama"}, "trainer": {"max_steps": 24, "learning_rate": 0.02}}
    run(short_run("question_ans", **changes), tmp_path, quiet=True)
    rows = test_split(tmp_path)
    given = [{"question": row["question"], "context": row["context"]} for row in rows]
    together = predicted(capsys, tmp_path, given)
    assert together == predicted(capsys, tmp_path, given, "trainer.per_device_eval_batch_size=1")
    expected = layout.read_summary(tmp_path)["metrics"]
    for name, value in score("question_ans", together, rows).items():
        assert value == pytest.approx(expected[f"test_{name}"], abs=1e-6)


def test_an_answer_that_is_none(runs, capsys, tmp_path):
    directory = runs("question_ans")
    manifest = layout.read_manifest(directory)
    kept = (directory / layout.MANIFEST).read_text()
    (directory / layout.MANIFEST).write_text(
        json.dumps({**manifest, "learnt": {**manifest["learnt"], "some_have_none": True}})
    )
    rows = [{"question": row["question"], "context": row["context"]} for row in test_split(directory)]
    said = predicted(capsys, directory, rows)
    (directory / layout.MANIFEST).write_text(kept)
    assert all((row["span"] is None) == (row["prediction"] == "") for row in said)


@pytest.mark.parametrize("task", ["causal_lm", "seq_2_seq_lm"])
def test_length_of_what_is_written(task, runs, capsys):
    role = {"causal_lm": "prompt", "seq_2_seq_lm": "source"}[task]
    rows = [{role: row[role]} for row in test_split(runs(task))[:3]]
    tokenizer = load_run(runs(task)).tokenizer
    for new in (1, 4):
        said = predicted(capsys, runs(task), rows, "--max-new-tokens", str(new))
        counts = [len(tokenizer(row["prediction"], add_special_tokens=False)["input_ids"]) for row in said]
        assert max(counts) <= new + 1  # a piece in the middle of a word may be two at its beginning


def test_what_is_written_is_what_the_model_generates(runs, capsys):
    directory = runs("causal_lm")
    prompts = [row["prompt"] for row in test_split(directory)[:4]]
    said = predicted(capsys, directory, [{"prompt": prompt} for prompt in prompts], "--max-new-tokens", "6")
    model, tokenizer = load_run(directory)
    for prompt, row in zip(prompts, said, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            written = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert row["prediction"] == tokenizer.decode(written, skip_special_tokens=True)


def test_texts_go_on_without_a_prompt(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("the cat sat on the mat\n" * 60)
    data = {"path": str(tmp_path / "mine.txt"), "max_length": 16}
    run(short_run("causal_lm", data=data), tmp_path / "run", quiet=True)
    rows = [{"text": "the cat sat"}, {"text": ""}, {"text": "the cat " * 600}]
    said = predicted(capsys, tmp_path / "run", rows, "--max-new-tokens", "3")
    assert [row["text"] for row in said] == [row["text"] for row in rows]
    place = tmp_path / "run" / "rows.jsonl"
    words = ["predict", str(tmp_path / "run"), "--input", str(place), "--to", str(tmp_path / "out.csv")]
    told = command(capsys, *words, "--max-new-tokens", "100000")
    assert (told.code, "leave no room for a prompt" in told.err) == (2, True)


def test_one_sentence_has_a_vector_and_two_have_a_cosine(runs, capsys):
    one = predicted(capsys, runs("feature_extraction"), [{"sentence1": "the dog runs"}])[0]
    two = predicted(capsys, runs("feature_extraction"), [{"sentence1": "the dog runs", "sentence2": "a cat"}])[0]
    assert one.keys() == {"sentence1", "embedding"}
    assert two.keys() == {"sentence1", "sentence2", "embedding", "embedding_2", "similarity"}
    assert one["embedding"] == pytest.approx(two["embedding"], abs=1e-5)
    left, right = np.asarray(two["embedding"]), np.asarray(two["embedding_2"])
    assert left @ right / np.linalg.norm(left) / np.linalg.norm(right) == pytest.approx(two["similarity"], abs=1e-5)


@pytest.mark.parametrize(
    ("task", "method", "changes"),
    [
        ("causal_lm", "prompt_tuning", {"method": {"num_virtual_tokens": 4}}),
        ("seq_cls", "prefix_tuning", {"method": {"num_virtual_tokens": 4}}),
        ("token_cls", "p_tuning", {"method": {"num_virtual_tokens": 4}}),
        ("seq_cls", "lora", {"trainer": {"bf16": True}, "adapter_name": "mine"}),
        ("seq_cls", "lora", {"model": {"dtype": "bfloat16"}}),
    ],
    ids=["prompt", "prefix", "p_tuning", "autocast", "bfloat16"],
)
def test_of_every_kind_of_adapter(task, method, changes, capsys, tmp_path):
    run(short_run(task, method, **changes), tmp_path, quiet=True)
    rows = [{key: v for key, v in row.items() if key not in ANSWERS} for row in test_split(tmp_path)]
    said = predicted(capsys, tmp_path, rows)
    assert len(said) == 16
    if task == "seq_cls":
        found = score(task, said, test_split(tmp_path))
        assert found["accuracy"] == layout.read_summary(tmp_path)["metrics"]["test_accuracy"]


def test_integers_that_a_method_takes_for_every_row(capsys, tmp_path):
    lines = [f"plot {number},{number % 2},{number % 3}" for number in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label,source", *lines]))
    data = {"path": str(tmp_path / "mine.csv"), "columns": {"task_ids": "source"}}
    method = {"num_virtual_tokens": 4, "num_tasks": 3}
    run(short_run("seq_cls", "multitask_prompt_tuning", data=data, method=method), tmp_path / "run", quiet=True)
    said = predicted(capsys, tmp_path / "run", [{"text": "plot", "source": number} for number in range(3)])
    assert len({tuple(row["probabilities"].values()) for row in said}) == 3
    (tmp_path / "bad.jsonl").write_text('{"text": "plot", "source": 3}')
    words = ["--input", str(tmp_path / "bad.jsonl"), "--to", str(tmp_path / "out.csv")]
    told = command(capsys, "predict", str(tmp_path / "run"), *words)
    assert (told.code, "takes integers from 0 to 2 as task_ids" in told.err) == (2, True)


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("critique\nfine\nbad\n", [], "no column for 'text'. Set data.columns.text=<column>. Columns: critique"),
        ("text,prediction\nfine,yes\n", [], "its column 'prediction' is one of the prediction's"),
        ("text,more\n", [], "no rows beside the header line"),
        ("", [], "empty"),
        ("text\nfine\n", ["method.r=4"], "method.r: predict sets no such key"),
        ("text\nfine\n", ["data.path=x.csv"], "data.path: predict sets no such key"),
        ("text\nfine\n", ["data.colums.text=x"], "predict sets no such key"),
        ("text\nfine\n", ["--max-new-tokens=4"], "--max-new-tokens: the task seq_cls writes no texts"),
        ("text\nfine\n", ["--max-new-tokens=0"], "must be 1 or more"),
        ("text\nfine\n", ["--tp=x"], "predict has no flag '--tp'; did you mean '--to'?"),
    ],
)
def test_what_cannot_be_predicted(content, words, said, runs, capsys, tmp_path):
    (tmp_path / "mine.csv").write_text(content)
    places = ["--input", str(tmp_path / "mine.csv"), "--to", str(tmp_path / "out.csv")]
    told = command(capsys, "predict", str(runs("seq_cls")), *places, *words)
    assert (told.code, told.out) == (2, "")
    assert said in told.err, told.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["--input", "nowhere.csv", "--to", "out.csv"], "--input=nowhere.csv: no such file"),
        (["--input", "mine.csv", "--to", "out.cvs"], "did you mean '.csv'?"),
        (["--input", "mine.csv", "--to", "mine.csv"], "would be written over"),
        (["--input", "mine.csv", "--to", "mine.csv/out.csv"], "mine.csv is a file"),
        (["--input", "mine.csv", "--to", "folder.csv"], "folder.csv is a directory"),
    ],
)
def test_places_that_cannot_be(places, said, runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("text\nfine\n")
    (tmp_path / "folder.csv").mkdir()
    told = command(capsys, "predict", str(runs("seq_cls")), *places)
    assert (told.code, said in told.err) == (2, True), told.err
    assert (tmp_path / "mine.csv").read_text() == "text\nfine\n"


def test_mistakes_cost_no_import_of_torch(runs, tmp_path):
    (tmp_path / "mine.csv").write_text("text\nfine\n")
    words = [str(runs("seq_cls")), "--input", "mine.csv", "--to", "out.csv", "seed=1"]
    told = in_new_process("-X", "importtime", "-m", "adapterkit", "predict", *words, cwd=tmp_path)
    assert (told.returncode, "| torch\n" in told.stderr) == (2, False)


def test_a_pipeline_that_cannot_predict_says_so(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(SeqClsPipeline, "predict", Pipeline.predict)
    (tmp_path / "mine.csv").write_text("text\nfine\n")
    places = ["--input", str(tmp_path / "mine.csv"), "--to", str(tmp_path / "out.csv")]
    told = command(capsys, "predict", str(runs("seq_cls")), *places)
    assert told.code == 1
    assert "task 'seq_cls'" in told.err
    assert "its pipeline SeqClsPipeline cannot predict: it defines no predict" in told.err
