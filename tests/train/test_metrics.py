"""Metrics against worked values, and against scikit-learn where it has them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterkit.train import metrics

TAGS = ["O", "B-per", "I-per", "B-org", "I-org"]


def test_entities_are_whole_spans():
    truth = [["B-per", "I-per", "O", "B-org"]]
    assert metrics.entities(truth, truth)["f1"] == 1
    cut = metrics.entities([["B-per", "O", "O", "B-org"]], truth)  # one of two right: half a person is none
    assert cut["precision"] == cut["recall"] == cut["f1"] == 0.5
    assert cut["accuracy"] == 0.75


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_spans_lie_apart_and_hold_no_outside_word(tags):
    found = sorted(metrics.spans(tags), key=lambda span: span[1])
    covered = [position for _, start, end in found for position in range(start, end)]
    assert covered == sorted(set(covered))
    assert {i for i, tag in enumerate(tags) if tag != "O"} == set(covered)


def test_a_span_ends_where_another_type_begins():
    assert metrics.spans(["B-per", "I-org", "I-org", "B-org"]) == {("per", 0, 1), ("org", 1, 3), ("org", 3, 4)}


def test_rouge_l_worked_by_hand():
    # "police killed the gunman" and "police kill the gunman": three of four words in order on both sides
    assert metrics.rouge_l("police killed the gunman", "Police kill the gunman!") == pytest.approx(0.75)
    assert metrics.rouge_l("", "a") == 0
    assert metrics.rouge_l("", "") == 1


@settings(max_examples=50)
@given(st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_the_longest_common_subsequence_against_all_subsequences(left, right):
    from itertools import combinations

    def all_of(text):
        return {"".join(chosen) for size in range(len(text) + 1) for chosen in combinations(text, size)}

    expected = max(len(common) for common in all_of(left) & all_of(right))
    assert metrics.longest_common_subsequence(left, right) == expected


def test_answers_worked_by_hand():
    found = metrics.answers(
        ["the Eiffel tower", "", "in 1990", "x"], [["Eiffel Tower"], [], ["1990", "early 1990"], []]
    )
    assert found["exact_match"] == pytest.approx(2 / 4)  # articles and case do not count; "in 1990" is not "1990"
    assert found["f1"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)


def test_classification_and_regression_are_the_libraries_own():
    found = metrics.classification([0, 1, 1, 0], [0, 1, 0, 0])
    assert found["accuracy"] == 0.75
    assert found["mcc"] == pytest.approx(np.corrcoef([0, 1, 1, 0], [0, 1, 0, 0])[0, 1])
    assert metrics.regression([1, 2, 3], [2, 4, 6])["pearson"] == pytest.approx(1)
    assert metrics.regression([1, 1, 1], [2, 4, 6])["spearman"] == 0  # a constant explains nothing
