"""Files go both ways for every method PEFT has, too, on every task."""

from __future__ import annotations

import pytest

from tests.interchange.matrix import Cell, cells, check, refusal, shared


@pytest.mark.parametrize("cell", list(cells()), ids=str)
def test_a_cell_of_the_matrix(cell):
    reason = refusal(cell)
    if reason:
        pytest.skip(f"PEFT cannot: {reason}")
    check(cell)


def test_most_of_the_matrix_is_there():
    assert len(shared()) >= 5
    assert refusal(Cell("lora", "CAUSAL_LM", "peft")) is None
