"""The grid of a sweep, and the verdict on it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from adapterkit.sweep.check import SHOWN, Verdict, grid

AXES = st.dictionaries(
    st.text("abc", min_size=1), st.lists(st.text("xyz123"), min_size=1, max_size=4, unique=True), max_size=4
)


@given(AXES)
def test_a_grid_is_the_product_of_its_axes(axes):
    assert list(grid(axes)) == list(itertools.product(*axes.values()))


@given(AXES, st.integers(1, 20))
def test_a_sample_is_a_part_of_the_grid_without_repeats_in_its_order(axes, limit):
    everything = list(itertools.product(*axes.values()))
    sample = list(grid(axes, limit=limit))
    assert len(sample) == min(limit, len(everything))
    places = [everything.index(trial) for trial in sample]
    assert places == sorted(set(places))


def test_a_sample_of_a_vast_grid_costs_no_more_than_itself():
    sample = list(grid({str(axis): [str(value) for value in range(100)] for axis in range(10)}, limit=50))
    assert len(set(sample)) == 50
    assert all(len({trial[axis] for trial in sample}) > 20 for axis in range(10))


def test_a_verdict_counts_trials_and_ranks_reasons():
    verdict = Verdict(4)
    verdict.add("a", ["rare", "common"])
    verdict.add("b", ["common"])
    verdict.add("c", [])
    verdict.add("d", [])
    text = str(verdict)
    assert (verdict.failing, verdict.checked) == (2, 4)
    assert text.startswith("2 of 4 trials would fail; nothing was started")
    assert text.index("common") < text.index("rare")
    assert "2 trials, the first: a" in text


def test_many_reasons_fit_one_screen():
    verdict = Verdict(100)
    for trial in range(100):
        verdict.add(str(trial), [f"reason {trial}"])
    assert f"and {100 - SHOWN} more reasons" in str(verdict)
    assert len(str(verdict).splitlines()) < 24


def test_a_sample_says_that_it_is_one():
    verdict = Verdict(10**9)
    verdict.add("a", ["no"])
    assert "1 of 1 looked at (1000000000 in all)" in str(verdict)
