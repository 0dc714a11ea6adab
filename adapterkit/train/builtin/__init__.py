"""Small data sets made by code, the same on every machine: what a first run trains on without a network.

Each module makes one data set and says what must be learnt for it. Training, validation and test examples never share
the combinations that decide the answer, so that neither memory nor the majority class does well on the held-out part.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from adapterkit.train.builtin import words

Examples = list[dict[str, Any]]
Splits = dict[str, Examples]

SEED = 20260801
"""Seed of every built-in data set; it has nothing to do with the seed of a run."""


def vocabulary() -> list[str]:
    """Every word of the built-in data sets, sorted."""
    return sorted(words.everything())


def part(*combination: str) -> str:
    """The split that a combination belongs to: 70 % train, 15 % validation, 15 % test, by its spelling alone."""
    share = random.Random("/".join(combination)).random()
    if share < 0.7:
        return "train"
    return "validation" if share < 0.85 else "test"


Draw = Callable[[random.Random], tuple[str, dict[str, Any]]]
"""Makes one example from a random generator, and names its split."""


def collect(draw: Draw, *, train: int, held_out: int, classes: int = 1) -> Splits:
    """Distinct examples from ``draw`` until each split is full.

    Args:
        draw: makes the examples.
        train: size of the training split.
        held_out: size of the validation split, and of the test split.
        classes: how many values the column ``label`` has; each gets an equal share of every split.

    Raises:
        ValueError: ``draw`` does not make so many different ones.
    """
    rng = random.Random(SEED)
    wanted = {"train": train, "validation": held_out, "test": held_out}
    room: Counter[tuple[str, Any]] = Counter()
    splits: Splits = {name: [] for name in wanted}
    seen: set[str] = set()
    for _ in range(200 * (train + held_out)):
        if all(len(splits[name]) == size for name, size in wanted.items()):
            return splits
        name, example = draw(rng)
        key, share = repr(example), (name, example.get("label"))
        if key not in seen and room[share] < wanted[name] // classes:
            seen.add(key)
            room[share] += 1
            splits[name].append(example)
    raise ValueError(f"{draw.__module__} cannot make so many different examples: {train} and {held_out}")


def sentence(parts: Iterable[str]) -> str:
    """The words joined by single blanks, empty ones left out."""
    return " ".join(word for word in parts if word)
