"""Methods that take an integer for every row: from a column of the data to the model, and what is said without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from adapterkit.errors import DataError
from adapterkit.train.columns import Roles, assign
from tests.commandline import Result, command
from tests.pipelines import pipeline_of
from tests.training import trained

TEXTS = {
    "seq_cls": lambda i: {"text": f"a {'good' if i % 2 else 'dull'} film {i}", "label": i % 2},
    "seq_2_seq_lm": lambda i: {"source": f"say {i}", "target": f"it is {i}"},
    "causal_lm": lambda i: {"text": f"line {i} of a story"},
    "token_cls": lambda i: {"tokens": ["in", "Paris"], "tags": ["O", "B-LOC"]},
    "feature_extraction": lambda i: {"sentence1": f"one {i}", "sentence2": f"two {i}", "score": i % 5},
    "question_ans": lambda i: {
        "context": f"box {i} is red", "question": "what colour?", "answers": {"text": ["red"], "answer_start": [9]},
    },
}  # fmt: skip
METHODS = {
    "multitask_prompt_tuning": ["method.num_virtual_tokens=2", "method.num_tasks=3"],
    "poly": ["method.n_tasks=3", "method.n_skills=2"],
}
FAST = ["trainer.use_cpu=true", "trainer.per_device_train_batch_size=6"]


def write(path: Path, task: str, **columns: Any) -> Path:
    """24 examples, each with the value that a function of its number gives for every further column."""
    rows = [{**TEXTS[task](i), **{name: of(i) for name, of in columns.items()}} for i in range(24)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(method: str, task: str, *overrides: str, steps: int = 5) -> Result:
        place = [f"hydra.run.dir={tmp_path / 'run'}", f"trainer.max_steps={steps}"]
        fast = [*FAST, "data.max_target_length=4"] if task == "seq_2_seq_lm" else FAST
        return command(capsys, f"+method={method}", f"task={task}", *place, *METHODS[method], *fast, *overrides)

    return call


@pytest.mark.parametrize(
    ("method", "task"),
    [(method, task) for method in METHODS for task in ("seq_cls", "seq_2_seq_lm")]
    + [("multitask_prompt_tuning", "causal_lm"), ("poly", "feature_extraction")],
)
def test_a_run_from_the_command_line(call: Any, tmp_path: Path, method: str, task: str) -> None:
    path = write(tmp_path / "data.jsonl", task, origin=lambda i: i % 3)
    result = call(method, task, f"data.path={path}", "data.columns={task_ids: origin}")
    assert result.code == 0, result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "ok"
    assert trained(tmp_path / "run")


def test_every_task_s_own_part_is_trained_on_its_rows_only(call: Any, tmp_path: Path) -> None:
    """The third task has no example: however long a run, its factors stay, and those of the others go on."""
    path = write(tmp_path / "data.jsonl", "seq_cls", task_ids=lambda i: i % 2)
    assert call("multitask_prompt_tuning", "seq_cls", f"data.path={path}").code == 0
    first = trained(tmp_path / "run")["prefix_task_rows"]
    (tmp_path / "run").rename(tmp_path / "first")
    assert call("multitask_prompt_tuning", "seq_cls", f"data.path={path}", steps=7).code == 0
    second = trained(tmp_path / "run")["prefix_task_rows"]
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("data", ["built_in", "file"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_without_the_column_is_refused(call: Any, tmp_path: Path, method: str, data: str) -> None:
    path = write(tmp_path / "data.jsonl", "seq_cls", task_id=lambda i: i % 3)
    result = call(method, "seq_cls", *([] if data == "built_in" else [f"data.path={path}"]))
    assert result.code == 2
    assert f"no column for 'task_ids', which {method.upper()} needs" in result.err
    assert "Set data.columns.task_ids=<column>" in result.err
    assert ("did you mean 'task_id'" in result.err) == (data == "file")
    assert "Traceback" not in result.err
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (-1, "-1"), ("two", "'two'"), (0.5, "0.5"), (None, "None")])
def test_other_values_are_refused(value: object, shown: str) -> None:
    split = Dataset.from_list([{"text": "a", "task": value}])
    roles = Roles({"text": "text"}, ("text",)).beside({"task_ids": 3}, "METHOD")
    with pytest.raises(DataError, match=rf"column 'task' has {shown} in row 0: METHOD takes integers from 0 to 2"):
        assign(split, roles, {"task_ids": "task"}, "here")


def test_integers_that_are_written_as_text_are_read() -> None:
    split = Dataset.from_list([{"text": "a", "task_ids": "2"}, {"text": "b", "task_ids": " 0"}])
    named = assign(split, Roles({"text": "text"}, ("text",)).beside({"task_ids": 3}, "METHOD"), {}, "here")
    assert named["task_ids"] == [2, 0]


@pytest.mark.parametrize("task", TEXTS)
def test_each_row_of_a_batch_has_the_integer_of_its_example(task: str) -> None:
    examples = Dataset.from_list([{**TEXTS[task](i), "task_ids": i} for i in range(4)])
    pipeline = pipeline_of(task)
    pipeline.tags = ["O", "B-LOC"]  # type: ignore[attr-defined]
    pipeline.labels = ["0", "1"]  # type: ignore[attr-defined]
    pipeline.row_inputs = ("task_ids",)
    encoded = pipeline.features(examples)
    batch = pipeline.batch([encoded[i] for i in range(len(encoded))])
    assert batch["task_ids"].tolist() == [0, 1, 2, 3] * pipeline.copies
    assert len(batch["input_ids"]) == len(batch["task_ids"])
