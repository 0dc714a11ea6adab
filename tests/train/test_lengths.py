"""What is told of texts that are cut off."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from adapterkit.train.run import run
from tests.training import short_run

LONG, SHORT = " ".join(["word"] * 40), "word"
DRY = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "seq_cls": ("text\tlabel", {}, [f"{LONG}\ta", f"{SHORT}\tb"]),
    "causal_lm": ("prompt\tcompletion", {}, [f"{LONG}\ta", f"{SHORT}\tb"]),
    "seq_2_seq_lm": ("source\ttarget", {"max_target_length": 2}, [f"{LONG}\t{SHORT}", f"{SHORT}\t{SHORT} {SHORT}"]),
    "feature_extraction": ("sentence1\tsentence2\tscore", {}, [f"{LONG}\t{LONG}\t0.5", f"{SHORT}\t{SHORT}\t1.0"]),
}


@pytest.mark.parametrize("task", CASES)
def test_texts_that_fill_the_room_are_counted(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header, options, lines = CASES[task]
    (tmp_path / "data.tsv").write_text("\n".join([header, *lines * 8]) + "\n")
    data = {"path": str(tmp_path / "data.tsv"), "max_length": 16, "validation_fraction": 0.25, **options}
    with caplog.at_level(logging.WARNING, "adapterkit"):
        run(short_run(task, data=data, trainer=DRY), tmp_path / "run", quiet=True)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("data.max_")]
    count, rows = (16, 32) if task == "feature_extraction" else (8, 16)
    assert told[0] == (
        f"data.max_length: {count} of {rows} texts have all of the 16 tokens that are kept; longer ones are cut off"
    )
    assert len(told) == 1 + ("max_target_length" in options)


@pytest.mark.parametrize("task", ["seq_cls", "causal_lm", "question_ans", "token_cls"])
def test_nothing_is_told_of_the_built_in_data(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adapterkit"):
        run(short_run(task, trainer=DRY), tmp_path, quiet=True)
    assert not [r for r in caplog.records if "kept" in r.getMessage()]
