"""Sentence pairs scored by how many of three slots mean the same; equal meaning is mostly said in other words."""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, sentence, words


def make() -> Splits:
    """1600 training and 2 x 250 held-out examples ``{"sentence1", "sentence2", "score"}``, score in 0 to 1."""
    return collect(_draw, train=1600, held_out=250)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    left, right, same = [], [], 0
    concepts = []
    for slot in words.SYNONYMS.values():
        first = rng.choice(slot)
        equal = rng.random() < 0.5
        second = first if equal else rng.choice([concept for concept in slot if concept != first])
        same += equal
        left.append(rng.choice(first.split()))
        right.append(rng.choice(second.split()))
        concepts += [first, second]
    pair = {"sentence1": _say(left), "sentence2": _say(right), "score": same / len(words.SYNONYMS)}
    return part(*concepts), pair


def _say(slots: list[str]) -> str:
    who, does, what = slots
    return sentence(["the", who, does, "the", what])
