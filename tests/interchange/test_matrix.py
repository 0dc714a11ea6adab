"""Files go both ways for every method PEFT has, too, on every task, and the page that shows it says nothing else."""

from __future__ import annotations

import pytest

from tests.interchange.matrix import BASES, MARKS, PAGE, Cell, cells, check, on_page, peft, refusal, shared
from tests.parity.prompts import needs_past_key_values

CELLS = [
    pytest.param(cell, marks=needs_past_key_values if cell.method == "prefix_tuning" else (), id=str(cell))
    for cell in cells()
]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_of_the_matrix(cell):
    reason, shown = refusal(cell), on_page(cell.method, cell.task)
    if reason:
        assert shown == "no"
        assert f"- {cell.method}, {cell.task}: {reason}\n" in PAGE.read_text(encoding="utf-8")
        return
    assert MARKS[cell.writer] in shown.split()
    assert "Error" not in shown
    check(cell)


def test_the_page_shows_the_whole_matrix():
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["method", *shared()]
    assert f"PEFT {peft.__version__} " in text
    assert text.count("\n- ") == sum(on_page(method, task) == "no" for method in shared() for task in BASES)


def test_most_of_the_matrix_is_there():
    assert len(shared()) >= 5
    assert refusal(Cell("lora", "CAUSAL_LM", "peft")) is None
