"""Sentiment with negation: ``nobody found the plot dull but the ending was not good`` is negative.

A clause is positive if its adjective is good and not negated, or bad and negated; after ``but`` the second clause
decides. No word alone says anything about the label. Which adjective meets which frame in the deciding clause differs
between training and held-out examples.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from adapterkit.train.builtin import Splits, collect, part, sentence, words

LABELS = ("negative", "positive")

FRAMES = (
    ("the {thing} was {adjective}", False),
    ("the {thing} was {degree} {adjective}", False),
    ("everybody found the {thing} {adjective}", False),
    ("i did find the {thing} {adjective}", False),
    ("the {thing} was not {adjective}", True),
    ("the {thing} was never {adjective}", True),
    ("nobody found the {thing} {adjective}", True),
    ("i did not find the {thing} {adjective}", True),
)


def make() -> Splits:
    """2400 training and 2 x 300 held-out examples ``{"text", "label"}``."""
    return collect(_draw, train=2400, held_out=300, classes=2)


class Clause(NamedTuple):
    """A statement on one thing."""

    text: str
    thing: str
    positive: bool
    split: str
    """The split that its adjective and frame belong to."""


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    decides = clause(rng)
    text = sentence([clause(rng).text, "but", decides.text]) if rng.random() < 0.2 else decides.text
    return decides.split, {"text": text, "label": LABELS[decides.positive]}


def clause(rng: random.Random, thing: str | None = None) -> Clause:
    """A clause drawn by chance, on ``thing`` or on anything."""
    good = rng.random() < 0.5
    adjective = rng.choice(words.GOOD if good else words.BAD)
    frame, negated = rng.choice(FRAMES)
    thing = thing or rng.choice(words.THINGS)
    text = frame.format(thing=thing, degree=rng.choice(words.DEGREES), adjective=adjective)
    return Clause(text, thing, good != negated, part(adjective, frame))
