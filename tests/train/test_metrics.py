"""Metrics against values worked out by hand, and against laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterkit.train import metrics


def test_classification() -> None:
    # class 0: precision 2/3, recall 2/2 -> F1 4/5; class 1: 1/1, 1/2 -> 2/3; mcc = (2*1 - 1*0) / sqrt(3*2*1*2)
    found = metrics.classification([0, 0, 0, 1], [0, 0, 1, 1])
    assert found == pytest.approx({"accuracy": 0.75, "f1": (4 / 5 + 2 / 3) / 2, "mcc": 2 / 12**0.5})


def test_regression() -> None:
    found = metrics.regression([1.0, 2.0, 3.0, 10.0], [2.0, 4.0, 6.0, 7.0])
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [2, 4, 6, 7])[0, 1])
    assert found["mse"] == pytest.approx((1 + 4 + 9 + 9) / 4)


def test_correlation_with_a_constant_is_none() -> None:
    assert metrics.regression([1.0, 1.0], [1.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0, "mse": 0.5}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("I-PER I-PER O I-PER", {("PER", 0, 2), ("PER", 3, 4)}),
        ("O B-ORG I-ORG", {("ORG", 1, 3)}),
        ("B-PER I-PER E-PER S-PER S-LOC O", {("PER", 0, 3), ("PER", 3, 4), ("LOC", 4, 5)}),
        ("B-PER E-PER E-PER I-PER", {("PER", 0, 2), ("PER", 2, 3), ("PER", 3, 4)}),
        ("B-PER E-LOC S-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 2), ("LOC", 2, 3), ("LOC", 3, 4)}),
        ("B-PER L-PER U-PER", {("PER", 0, 2), ("PER", 2, 3)}),
        ("B-PER M-PER E-PER W-PER", {("PER", 0, 3), ("PER", 3, 4)}),
        ("E-PER I-PER NN-PER X -LRB-", {("PER", 0, 1), ("PER", 1, 2)}),
    ],
)
def test_spans(tags: str, expected: set[metrics.Span]) -> None:
    assert metrics.spans(tags.split()) == expected


def test_entities_count_whole_ones_only() -> None:
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-ORG", "B-PER"]]
    found = metrics.entities(predicted, expected)  # found LOC, ORG of PER(0-2), LOC, ORG; guessed 4
    assert found == pytest.approx({"precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 4 / 6})


def test_no_entities_at_all() -> None:
    assert metrics.entities([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


@given(st.lists(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1), min_size=1))
def test_right_entities_are_perfect(tags: list[list[str]]) -> None:
    found = metrics.entities(tags, tags)
    assert found["accuracy"] == 1
    assert found["f1"] == float(any(metrics.spans(row) for row in tags))


def test_rouge_l_of_the_paper() -> None:
    # Lin (2004), section 3.1: the common subsequence "police the gunman" has 3 of 4 words on either side
    assert metrics.rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert metrics.rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)


def test_rouge_l_of_nothing() -> None:
    assert metrics.rouge_l("", "a") == 0
    assert metrics.rouge_l("...", "") == 1


_LETTERS = st.text(alphabet="abc", max_size=8)


@given(_LETTERS, _LETTERS)
def test_longest_common_subsequence_by_definition(left: str, right: str) -> None:
    def longest(one: str, other: str) -> int:
        if not one or not other:
            return 0
        if one[0] == other[0]:
            return 1 + longest(one[1:], other[1:])
        return max(longest(one[1:], other), longest(one, other[1:]))

    assert metrics.longest_common_subsequence(left, right) == longest(left, right)


def test_written() -> None:
    found = metrics.written([" a b ", "a"], ["a b", "b"])
    assert found == {"rougeL": 0.5, "exact_match": 0.5}


@pytest.mark.parametrize(("text", "plain"), [("The  Cat!", "cat"), ("an A", ""), ("U.S. the-end", "us theend")])
def test_normalised_answers(text: str, plain: str) -> None:
    assert metrics.normalise_answer(text) == plain


def test_answers_take_the_best_of_several() -> None:
    found = metrics.answers(["the cat sat", ""], [["dog", "cat sat down"], []])
    assert found == pytest.approx({"exact_match": 0.5, "f1": (0.8 + 1) / 2})  # 2 of 2 words, 2 of 3


def test_answer_where_there_is_none() -> None:
    assert metrics.answers(["cat"], [[]]) == {"exact_match": 0.0, "f1": 0.0}
    assert metrics.answers([""], [["cat"]]) == {"exact_match": 0.0, "f1": 0.0}
