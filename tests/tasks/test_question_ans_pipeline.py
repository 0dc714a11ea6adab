"""Windows over contexts, and back to answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from adapterkit.errors import DataError
from adapterkit.train.pipeline import Encoded, Pipeline
from tests.pipelines import data_of, pipeline_of

CONTEXT = "ann lives in paris . " * 4 + "tom lives in rome ."


def row(answer: str, context: str = CONTEXT) -> dict[str, Any]:
    found = {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
    return {"context": context, "question": "where ?", "answers": found}


def made(rows: list[dict[str, Any]], **options: Any) -> tuple[Pipeline, Encoded]:
    data = data_of(rows)
    pipeline = pipeline_of("question_ans", data, **options)
    return pipeline, pipeline.features(data.train)


def perfect(encoded: Encoded) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits that point where the labels point."""
    longest = max(len(ids) for ids in encoded.rows["input_ids"])
    logits = np.full((2, len(encoded), longest), -5.0)
    for side, name in enumerate(("start_positions", "end_positions")):
        logits[side, np.arange(len(encoded)), encoded.rows[name]] = 5.0
    return logits[0], logits[1]


def test_positions_are_those_of_the_answer() -> None:
    _, encoded = made([row("tom lives"), row("rome")])
    for index, answer in enumerate(("tom lives", "rome")):
        window = encoded[index]
        start, end = (window["offsets"][window[name]] for name in ("start_positions", "end_positions"))
        assert CONTEXT[start[0] : end[1]].strip() == answer


def test_windows_overlap_and_cover_the_context() -> None:
    _, encoded = made([row("rome")], max_length=16, doc_stride=4)
    spans = [[pair for pair in pairs if pair[0] >= 0] for pairs in encoded.rows["offsets"]]
    assert len(spans) > 1
    assert spans[0][0][0] == 0
    assert spans[-1][-1][1] == len(CONTEXT)
    assert all(left[-1][1] > right[0][0] for left, right in pairwise(spans))
    pointing = [start != 0 for start in encoded.rows["start_positions"]]
    assert pointing[-1]
    assert not pointing[0]  # the answer is at the end


@pytest.mark.parametrize("options", [{}, {"max_length": 16, "doc_stride": 4}, {"doc_stride": 500}])
def test_labels_score_perfectly(options: dict[str, int]) -> None:
    pipeline, encoded = made([row("tom"), row("in rome"), row("paris"), row("")], **options)
    assert pipeline.score(perfect(encoded), None, encoded) == {"exact_match": 1.0, "f1": 1.0}


def test_no_answer_wins_only_where_some_have_none() -> None:
    for rows, expected in ([row("rome"), row("")], ""), ([row("rome"), row("tom")], "ann"):
        pipeline, encoded = made(rows)
        start, end = perfect(encoded)
        start[:], end[:] = 0.0, 0.0
        start[:, 0] = end[:, 0] = 9.0  # nowhere
        first_word = next(i for i, pair in enumerate(encoded[0]["offsets"]) if pair[0] >= 0)
        start[:, first_word] = end[:, first_word] = 1.0
        assert pipeline._answers((start, end), encoded)[0] == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(("said", "overlap"), [(7, 7), (None, 4)])  # the window has room for 11
def test_windows_overlap_by_what_was_said(said: int | None, overlap: int) -> None:
    _, encoded = made([row("rome")], max_length=16, doc_stride=said)
    windows = [[tuple(pair) for pair in pairs if pair[0] >= 0] for pairs in encoded.rows["offsets"]]
    assert all(left[-overlap:] == right[:overlap] for left, right in pairwise(windows))
    assert len(windows) > 2


def test_overlap_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"data\.doc_stride=11: windows of 16 .* leave (\d+) .* 'where \?'; .* below \1"
    ):
        made([row("rome")], max_length=16, doc_stride=11)


def test_long_questions_leave_room() -> None:
    long = {**row("rome"), "question": "where " * 100}
    _, encoded = made([long], max_length=32, doc_stride=8)
    assert all(len(ids) <= 32 for ids in encoded.rows["input_ids"])
    assert any(encoded.rows["start_positions"])


def test_baseline_answers_nothing() -> None:
    pipeline, encoded = made([row("rome"), row(""), row("")])
    assert pipeline.baseline(encoded, encoded) == pytest.approx({"exact_match": 2 / 3, "f1": 2 / 3})
    pipeline, encoded = made([row("rome")])
    assert pipeline.baseline(encoded, encoded) is None
