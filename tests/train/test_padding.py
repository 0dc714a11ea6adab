"""What is said of a row does not depend on the rows beside it, on whichever side the tokenizer pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapterkit import get_peft_model
from adapterkit.config.run import ModelConfig
from adapterkit.registry import methods, tasks
from adapterkit.train.models import load_base, use_padding_of
from adapterkit.train.pipeline import IGNORED, Encoded, Pipeline, first, own_positions
from tests.models import move
from tests.pipelines import data_of, pipeline_of

SHORT, LONG = "ann lives in paris", "tom lives in rome . ann lives in paris . the old dog is in town"
ROWS: dict[str, list[dict[str, Any]]] = {
    "seq_cls": [{"text": SHORT, "label": "1"}, {"text": LONG, "label": "0"}],
    "token_cls": [{"tokens": text.split(), "tags": ["O", "B-A"] * (len(text.split()) // 2)} for text in (SHORT, LONG)],
    "causal_lm": [{"prompt": SHORT, "completion": " , too"}, {"prompt": LONG, "completion": " , and the cat is , too"}],
    "seq_2_seq_lm": [{"source": SHORT, "target": "paris"}, {"source": LONG, "target": "rome and paris"}],
    "feature_extraction": [
        {"sentence1": text, "sentence2": text.replace("paris", "rome"), "score": 1.0} for text in (SHORT, LONG)
    ],
    "question_ans": [
        {"context": SHORT, "question": "where ?", "answers": {"text": ["in paris"], "answer_start": [10]}},
        {"context": LONG, "question": "where is tom ?", "answers": {"text": ["rome"], "answer_start": [13]}},
    ],
}  # fmt: skip
ANSWERS = {"label", "tags", "completion", "target", "score", "answers"}
DECODERS, ENCODER = ["gpt2", "llama"], ["bert"]
FAMILIES = {task: ENCODER + DECODERS for task in ROWS} | {"causal_lm": DECODERS, "seq_2_seq_lm": ["t5"]}
CASES = [(task, family) for task, families in FAMILIES.items() for family in families]
PROMPTS = {"prompt_tuning": {}, "p_tuning": {"encoder_hidden_size": 8}, "prefix_tuning": {}}


def made(task: str, family: str, side: str, method: str = "") -> tuple[Pipeline, Any, Encoded]:
    """A pipeline, a model in evaluation mode, and the features of a short and a long row."""
    data, config, model = data_of(ROWS[task]), tasks[task](), f"builtin:{family}"
    pipeline = pipeline_of(task, model=model)
    pipeline.tokenizer.padding_side = side
    base: Any = load_base(ModelConfig(name_or_path=model), config, **pipeline.learn(data))
    use_padding_of(base, pipeline.tokenizer)
    if method:
        fields = {"num_virtual_tokens": 3, "task_type": config.task_type, **PROMPTS[method]}
        base = get_peft_model(base, methods[method](**fields)).eval()
        move(base)
    return pipeline, base, pipeline.features(data.train)


def computed(pipeline: Pipeline, model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor | None, list[Tensor]]:
    """The loss of a batch, and what the model computes for every row: for its own columns, where it has some."""
    batch = pipeline.batch(rows)
    with torch.no_grad():
        outputs = model(**(pipeline.inputs(batch) if pipeline.copies == 2 else batch))
    found = first([value for name, value in outputs.items() if name != "loss"])
    if "start_logits" in outputs:
        found = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    loss = None if "start_logits" in outputs else outputs.get("loss")  # theirs is over the columns of padding, too
    if found.ndim == 2:
        return loss, list(found)
    own = batch["labels"] != IGNORED if pipeline.generates else batch["attention_mask"].bool()
    values = own_positions(found, own.shape[1])
    return loss, [row[mine] for row, mine in zip(values, own, strict=True)]


def check_rows_alone(pipeline: Pipeline, model: Any, encoded: Encoded) -> None:
    loss, together = computed(pipeline, model, [encoded[0], encoded[1]])
    alone = [computed(pipeline, model, [encoded[index]]) for index in range(2)]
    for index, row in enumerate(together):
        torch.testing.assert_close(row, alone[index % 2][1][index // 2], rtol=1e-4, atol=1e-5)
    if loss is not None:
        shift = 1 if pipeline.smoothing_shift else 0
        labels = [encoded[index].get("labels", 0) for index in range(2)]
        counts = [sum(n != IGNORED for n in row[shift:]) if isinstance(row, list) else 1 for row in labels]
        losses = torch.stack([part[0] for part in alone if part[0] is not None])
        weights = torch.tensor(counts) / sum(counts)
        torch.testing.assert_close(loss, losses @ weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("task", "family"), CASES)
def test_outputs_and_losses_of_a_batch_are_those_of_its_rows(task: str, family: str, side: str) -> None:
    check_rows_alone(*made(task, family, side))


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize(("task", "family"), [(task, family) for task, family in CASES if family in DECODERS])
def test_rows_behind_virtual_tokens(task: str, family: str, method: str) -> None:
    check_rows_alone(*made(task, family, "left", method))


@pytest.mark.parametrize(
    ("task", "family", "side", "method"),
    [(*case, side, "") for case in CASES for side in ("left", "right")]
    + [("causal_lm", family, "right", method) for family in DECODERS for method in PROMPTS],
)
def test_predictions_of_a_batch_are_those_of_its_rows(task: str, family: str, side: str, method: str) -> None:
    pipeline, model, _ = made(task, family, side, method)
    examples = data_of(ROWS[task]).train
    encoded = pipeline.unanswered(examples.remove_columns([name for name in examples.column_names if name in ANSWERS]))
    with torch.no_grad():
        together = pipeline.predict(model, pipeline.batch([encoded[0], encoded[1]]))
        alone = [pipeline.predict(model, pipeline.batch([encoded[index]]))[0] for index in range(2)]
    for one, other in zip(pipeline.predictions(together, encoded), pipeline.predictions(alone, encoded), strict=True):
        numbers = {name for name in one if name in ("probabilities", "embedding", "embedding_2", "similarity")}
        assert {name: one[name] for name in one.keys() - numbers} == {n: other[n] for n in other.keys() - numbers}
        for name in numbers:
            assert one[name] == pytest.approx(other[name], abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_positions_of_answers_are_those_of_their_tokens(family: str, side: str) -> None:
    pipeline = pipeline_of("question_ans", model=f"builtin:{family}")
    pipeline.tokenizer.padding_side = side
    encoded = pipeline.features(data_of(ROWS["question_ans"]).train)
    batch = pipeline.batch([encoded[0], encoded[1]])
    assert not batch["attention_mask"].all()
    for ids, start, end, row in zip(
        batch["input_ids"], batch["start_positions"], batch["end_positions"], ROWS["question_ans"], strict=True
    ):
        assert pipeline.tokenizer.decode(ids[start : end + 1]).strip() == row["answers"]["text"][0]


@pytest.mark.parametrize("named", [None, 7])
def test_a_decoder_classifies_by_the_last_token_whatever_padding_it_knows_of(named: int | None) -> None:
    pipeline, model, encoded = made("seq_cls", "llama", "right")
    model.config.pad_token_id = named
    use_padding_of(model, pipeline.tokenizer)
    check_rows_alone(pipeline, model, encoded)
