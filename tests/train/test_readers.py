"""Files of every format to columns, and what is said of files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from adapterkit.errors import DataError
from adapterkit.train.readers import read_file

ROWS = {"text": ["good, really", 'so "bad"', "zwei Wörter"], "label": ["1", "0", "1"]}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"good, really",1\n"so ""bad""",0\nzwei Wörter,1\n')
    assert read_file(path) == ROWS


def test_csv_with_a_whole_document_in_a_cell(tmp_path: Path) -> None:
    document = "word " * 40_000
    assert read_file(write(tmp_path / "a.csv", f"text\n{document}\n"), header=True) == {"text": [document]}


def test_csv_record_that_does_not_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv:3: not readable as csv: unexpected end of data in what begins here"):
        read_file(write(tmp_path / "a.csv", 'text,label\na,1\n"b,0\nc,1\n'))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_line_of_another_encoding_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("{}\n{}\nzwei Wörter\n".encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}:3: not UTF-8, which text files must be"):
        read_file(tmp_path / name)


def test_tsv_keeps_quotation_marks_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\ngood, really\t1\nso "bad"\t0\n"zwei Wörter"\t1\n')
    assert read_file(path) == ROWS


@pytest.mark.parametrize(
    ("first", "has_header"),
    [
        ("sentence\tlabel", True),
        ("a fine film\t1", False),  # a number is data
        ("a fine film\tpositive", False),  # its column repeats the value
        ("review\tsentiment", True),
    ],
)
def test_whether_there_is_a_header_is_seen(tmp_path: Path, first: str, has_header: bool) -> None:
    path = write(tmp_path / "a.tsv", f"{first}\nboring\tnegative\nlovely\tpositive\n")
    columns = read_file(path)
    assert len(next(iter(columns.values()))) == 2 + (not has_header)
    assert list(columns) == (first.split("\t") if has_header else ["column1", "column2"])


def test_header_can_be_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,2\n3,4\n")
    assert read_file(path, header=True) == {"1": ["3"], "2": ["4"]}
    assert read_file(path, header=False) == {"column1": ["1", "3"], "column2": ["2", "4"]}


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,text,label\na,b,1\nc,d,0\n")
    with pytest.raises(DataError, match=r"a\.csv:1: two columns are called 'text'; columns: text, text, label"):
        read_file(path)


def test_ragged_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\ngood\t1\nbad\n")
    with pytest.raises(DataError, match=r"a\.tsv:3: 1 columns, where the first line has 2"):
        read_file(path)


@pytest.mark.parametrize("inside", [False, True])
def test_json_of_objects(tmp_path: Path, inside: bool) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b"}]
    path = write(tmp_path / "a.json", json.dumps({"data": rows} if inside else rows))
    assert read_file(path) == {"text": ["a", "b"], "label": [1, None]}


def test_json_of_columns(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "label": [0.5, 1.0]}
    assert read_file(write(tmp_path / "a.json", json.dumps(columns))) == columns


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert read_file(path) == {"text": ["a", "b"]}


def test_json_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        read_file(path)


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.table(ROWS), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet") == ROWS
    with pytest.raises(DataError, match="not readable as parquet"):
        read_file(write(tmp_path / "b.parquet", "no"))


def test_conll(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "-DOCSTART- O\n\nAnn\tNNP\tB-PER\nlives\tV\tO\n\n\n  \nParis B-LOC\n")
    assert read_file(path) == {"tokens": [["Ann", "lives"], ["Paris"]], "tags": [["B-PER", "O"], ["B-LOC"]]}


def test_conll_line_without_a_tag_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.conll:2: expected a token and a tag, found 'lives'"):
        read_file(write(tmp_path / "a.conll", "Ann\tB-PER\nlives\n"))


def squad(**changes: object) -> dict[str, object]:
    answered = {"id": 1, "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    nothing = {"id": 2, "question": "When?", "answers": [], "is_impossible": True}
    paragraph = {"context": "Ann lives.", "qas": [answered, nothing], **changes}
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}


@pytest.mark.parametrize("format", ["auto", "squad"])
def test_squad(tmp_path: Path, format: str) -> None:
    columns = read_file(write(tmp_path / "a.json", json.dumps(squad())), format=format)
    assert columns == {
        "id": ["1", "2"],
        "context": ["Ann lives."] * 2,
        "question": ["Who?", "When?"],
        "answers": [{"text": ["Ann"], "answer_start": [0]}, {"text": [], "answer_start": []}],
    }


def test_squad_without_a_question_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(squad(qas=[{"id": 1, "answers": []}])))
    with pytest.raises(DataError, match="an entry has no 'question'"):
        read_file(path)


def test_text_joins_to_the_file(tmp_path: Path) -> None:
    text = "First line\n\nthird, and no end"
    assert "".join(read_file(write(tmp_path / "a.txt", text))["text"]) == text


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_without_commas_is_separated_by_what_divides_all_lines_alike(tmp_path: Path, mark: str) -> None:
    lines = ["text,label", '"good, really",1', '"so ""bad""",0', "zwei Wörter,1"]
    text = "\n".join(mark.join(line.rsplit(",", 1)) for line in lines)
    assert read_file(write(tmp_path / "a.csv", text)) == ROWS
    decimals = f"x{mark}y\n0,5{mark}a\n1{mark}b,c\n"
    assert read_file(write(tmp_path / "b.csv", decimals)) == {"x": ["0,5", "1"], "y": ["a", "b,c"]}


@pytest.mark.parametrize(
    "text",
    [
        "text\nfirst; second\nthird; fourth\n",  # a header without the mark
        "first; second\nthird; fourth\n",  # as it stands in sentences
        "a;b,c\nd;e,f\n",  # commas divide them, too
        "text;more\n",  # nothing to compare with
        "a;b\nc\n",
    ],
)
def test_csv_is_separated_by_commas_where_others_may_be_text(tmp_path: Path, text: str) -> None:
    columns = read_file(write(tmp_path / "a.csv", text), header=False)
    assert [",".join(row) for row in zip(*columns.values(), strict=True)] == text.splitlines()


def test_csv_that_two_marks_divide_alike_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a;b|c\nd;e|f\n")
    with pytest.raises(DataError, match="semicolon and pipe both divide its lines alike: set data"):
        read_file(path)
    assert read_file(path, separator="pipe") == {"a;b": ["d;e"], "c": ["f"]}
    assert read_file(path, separator="comma") == {"a;b|c": ["d;e|f"]}


def test_missing_file_and_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_file(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"ending '\.xyz' names no format; set data\.format"):
        read_file(write(tmp_path / "a.xyz", ""))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_empty_table_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="empty"):
        read_file(write(tmp_path / name, ""))
