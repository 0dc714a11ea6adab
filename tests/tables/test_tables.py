"""The tables of ``docs/methods.md`` are what their programs give, and say what they should."""

from __future__ import annotations

import pytest

from adapterkit.config.prompt import PromptConfig
from adapterkit.registry import methods
from adapterkit.testing import AdapterContract, PromptContract
from tests.tables import capabilities, counts, differences, page, parity, size

ROUNDING = 4e-6
"""Of the largest number compared."""

CASES = list(parity.cases())


@pytest.mark.parametrize("name", ["capabilities", "laws"])
def test_the_page_is_what_the_classes_say(name):
    assert page.written(name) == page.TABLES[name](), f"run python -m tests.tables {name}"


def test_every_column_has_its_law():
    for column in capabilities.COLUMNS:
        for law, contract in ((column.layer_law, AdapterContract), (column.prompt_law, PromptContract)):
            assert not law or callable(getattr(contract, law)), column.title


@pytest.mark.parametrize("case", CASES, ids=str)
def test_differences_from_peft_are_rounding(case):
    measured = parity.measure(case)
    assert {measured.found["PEFT reads ours"], measured.found["we read PEFT's"]} == {0}
    assert (measured.found["merged weight"] is None) == (case.is_prompt or case.method in ("poly", "adaption_prompt"))
    for quantity, difference in measured.found.items():
        assert difference is None or difference <= ROUNDING * measured.scale, quantity
    assert f"\n| {case.method} | {case.base} |" in page.written("parity")


def test_every_method_is_compared_in_every_table():
    names = {case.method for case in CASES}
    assert names >= {name for name in methods if methods[name].__module__.startswith("adapterkit.methods.")}
    for table in ("capabilities", "parity", "size"):
        assert all(f"\n| {name} |" in page.written(table) for name in names), table
    assert any(issubclass(methods[name], PromptConfig) for name in names)


@pytest.mark.parametrize("name", differences.CASES)
def test_where_numbers_differ_ours_are_right(name):
    ours, theirs = differences.CASES[name][1]()
    assert ours < 1e-5
    assert theirs > 0.1
    assert f"| {name} |" in page.written("differences")


def test_attention_of_one_number():
    assert differences.scalar_attention() == (2, 3)


def test_counts_and_files_are_the_published_ones():
    rows = list(counts.rows())
    assert [row.file for row in rows] == [row.published_file for row in rows]
    assert all(row.is_same for row in rows)
    assert len(rows) >= 24
    assert counts.table(rows) == page.written("counts"), "run python -m tests.tables counts"


def test_the_size_of_a_file_is_that_of_safetensors(tmp_path):
    import torch
    from safetensors.torch import save_file

    tensors = {"b": torch.ones(3, 5), "a.weight": torch.zeros(7)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert counts.file_size(tensors) == (tmp_path / "x.safetensors").stat().st_size


SOURCE = '''"""Text
of two lines."""

# a remark
x = (1,
     2)  # two lines


def f():
    """Text."""
    return x
'''


def test_lines_are_counted_without_comments_and_docstrings():
    assert size.lines_of_code(SOURCE) == 4
