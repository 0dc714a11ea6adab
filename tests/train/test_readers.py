"""Files of every format to columns, and what is said of files that do not fit."""

from __future__ import annotations

import json

import pytest

from adapterkit.errors import DataError
from adapterkit.train.readers import read_file

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Ada was born in London.",
                    "qas": [
                        {"id": "1", "question": "Where?", "answers": [{"text": "London", "answer_start": 16}]},
                        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}

FILES = {
    "a.csv": ('text,label\n"a, b",x\n"say ""hi""",y\n', {"text": ["a, b", 'say "hi"'], "label": ["x", "y"]}),
    "header.tsv": ("sentence\tlabel\na fine day\t1\nno\t0\n", {"sentence": ["a fine day", "no"], "label": ["1", "0"]}),
    "bare.tsv": ("a fine day\t1\nno\t0\n", {"column1": ["a fine day", "no"], "column2": ["1", "0"]}),
    "a.jsonl": ('{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n', {"text": ["a", "b"], "label": [1, 0]}),
    "a.json": ('[{"text": "a", "n": 1}, {"text": "b", "n": 2}]', {"text": ["a", "b"], "n": [1, 2]}),
    "a.conll": ("EU\tB-org\nrejects\tO\n\nPeter\tB-per\n", {"tokens": [["EU", "rejects"], ["Peter"]],
                                                            "tags": [["B-org", "O"], ["B-per"]]}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_columns(tmp_path, name):
    content, expected = FILES[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_file(tmp_path / name) == expected


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet") == {"text": ["a", "b"], "label": [0, 1]}


def test_squad_is_recognised_and_keeps_questions_without_answer(tmp_path):
    (tmp_path / "dev.json").write_text(json.dumps(SQUAD), encoding="utf-8")
    columns = read_file(tmp_path / "dev.json")
    assert columns["question"] == ["Where?", "When?"]
    assert columns["context"] == ["Ada was born in London."] * 2
    assert [list(answer["text"]) for answer in columns["answers"]] == [["London"], []]


def test_text_keeps_every_word(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n\nthree\n", encoding="utf-8")
    (column,) = read_file(tmp_path / "a.txt").values()
    assert " ".join(column).split() == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1,2\n", r"a\.csv:2: 3 columns"),
        ("a.jsonl", '{"a": 1}\nnot json\n', r"a\.jsonl"),
        ("a.json", "{", r"a\.json"),
        ("a.csv", "", "empty"),
        ("a.xyz", "a", "names no format"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_file(tmp_path / "a.csv")
