"""The benchmark's table: a failing row says why, and a document keeps what stands around the table."""

from __future__ import annotations

import math

from bench.report import BEGIN, END, machine, write
from bench.rows import Goal, Row, table, tried


def test_a_failing_row_says_why_and_the_others_stand():
    def some():
        yield Row.of_values("first", "ms", 2.0, 8.0, goal=Goal(0.5))
        raise ValueError("no | such\nthing")

    first, failed = tried("second", some)
    assert (first.ratio, first.met, first.failed) == (0.25, "yes", False)
    assert failed.failed
    assert failed.name == "second"
    assert failed.note == "ValueError: no / such thing"
    assert failed.met == ""
    assert "ValueError" in table([first, failed])


def test_what_is_not_there_is_no_row():
    assert list(tried("absent", lambda: None)) == []


def test_goals_are_on_the_ratio_or_on_our_own_figure():
    row = Row.of_values("row", "s", 3.0, 2.0, goal=Goal(1.4))
    assert row.met == "no"
    assert Row.of_values("row", "s", 3.0, 2.0, goal=Goal(4, "ours")).met == "yes"
    assert math.isnan(Row.of_values("row", "s", 3.0).ratio)


def test_a_document_keeps_all_but_its_table(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for text in ("| one |", "| two |"):
        write(path, text, "a machine")
    content = path.read_text()
    assert content.startswith("# Title\n\nbefore\n")
    assert content.endswith(f"{END}\n\nafter\n")
    assert "| two |" in content
    assert "one" not in content
    assert "old" not in content


def test_a_document_without_a_place_gets_one_at_its_end(tmp_path):
    path = tmp_path / "page.md"
    write(path, "| one |", "a machine")
    write(path, "| two |", "a machine")
    assert path.read_text().count(BEGIN) == 1


def test_the_machine_is_told_without_a_date():
    text = machine()
    assert "torch 2" in text
    assert "cores" in text
