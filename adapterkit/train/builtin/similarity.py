"""Pairs of opinions, alike if both praise or both blame, whatever is praised or blamed and in what words.

An untrained model goes by the words that two sentences share, which say next to nothing here. Which adjective meets
which frame differs between training and held-out pairs.
"""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, words

FRAMES = (
    "the {thing} was {adjective}",
    "the {thing} was {degree} {adjective}",
    "everybody found the {thing} {adjective}",
    "i did find the {thing} {degree} {adjective}",
    "they said that the {thing} was {adjective}",
)
DEGREES = {"rather": 0.5, "very": 1.0}
"""Words of degree, and how far they carry an opinion; without one it is carried half-way between."""


def make() -> Splits:
    """1600 training and 2 x 250 held-out examples ``{"sentence1", "sentence2", "score"}``, score in 0 to 1."""
    return collect(_draw, train=1600, held_out=250)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    (left, split, first), (right, other, second) = _opinion(rng), _opinion(rng)
    pair = {"sentence1": left, "sentence2": right, "score": 1 - abs(first - second) / 2}
    return (other if split == "train" else split), pair


def _opinion(rng: random.Random) -> tuple[str, str, float]:
    """Text, split of its adjective and frame, and the opinion from -1 to 1."""
    good = rng.random() < 0.5
    adjective, degree = rng.choice(words.GOOD if good else words.BAD), rng.choice(list(DEGREES))
    frame = rng.choice(FRAMES)
    strength = DEGREES[degree] if "{degree}" in frame else 0.75
    text = frame.format(thing=rng.choice(words.THINGS), degree=degree, adjective=adjective)
    return text, part(adjective, frame), strength if good else -strength
