"""Named entities whose type is in the context alone: Jordan may be a person, a place or a company.

A name is never seen in training in the frames it is held out in, so a word list cannot solve it.
"""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, words

FRAMES = (
    "dr [PER] met the mayor of [LOC] yesterday .",
    "mr [PER] works for [ORG] in [LOC] .",
    "[PER] said that shares of [ORG] fell today .",
    "a spokesman for [ORG] said that [PER] left .",
    "[ORG] hired [PER] in [LOC] .",
    "the team of [LOC] plays against the team of [LOC] .",
    "[PER] flew from [LOC] to [LOC] .",
    "[ORG] bought [ORG] because shares rose .",
    "the river near [LOC] was seen by [PER] .",
    "[PER] and his friend [PER] visited [LOC] .",
    "today [ORG] sold a hotel near [LOC] .",
    "nobody in [LOC] had met [PER] .",
)
SHAPES = {
    "PER": ("{0}", "{0} {1}"),
    "LOC": ("{0}", "north {0}", "{0} city"),
    "ORG": ("{0}", "{0} inc", "{0} and {1} corp"),
}


def make() -> Splits:
    """1200 training and 2 x 250 held-out examples ``{"tokens", "tags"}`` with BIO tags."""
    return collect(_draw, train=1200, held_out=250)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    frame = rng.choice(FRAMES)
    tokens: list[str] = []
    tags: list[str] = []
    splits: set[str] = set()
    for word in frame.split():
        kind = word.strip("[]")
        if kind not in SHAPES:
            tokens.append(word)
            tags.append("O")
            continue
        names = rng.sample(words.NAMES, 2)
        entity = rng.choice(SHAPES[kind]).format(*names).split()
        tokens += entity
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (len(entity) - 1)
        splits.add(part(kind, names[0], frame))
    return _strictest(splits), {"tokens": tokens, "tags": tags}


def _strictest(splits: set[str]) -> str:
    """Training if every combination is a training one; else the held-out split of one that is not."""
    held_out = sorted(splits - {"train"})
    return held_out[0] if held_out else "train"
