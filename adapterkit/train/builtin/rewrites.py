"""Rewriting from the other side: ``tom gave the ball to ann`` becomes ``ann got the ball from tom``."""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, words

FRAMES = (
    ("{one} gave the {object} to {other}", "{other} got the {object} from {one}"),
    ("{one} sold the {object} to {other}", "{other} bought the {object} from {one}"),
)


def make() -> Splits:
    """1200 training and 2 x 150 held-out examples ``{"source", "target"}``; who meets whom over what differs."""
    return collect(_draw, train=600, held_out=100)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    one, other = rng.sample(words.PEOPLE, 2)
    thing = rng.choice(words.OBJECTS)
    source, target = (text.format(one=one, other=other, object=thing) for text in rng.choice(FRAMES))
    return part(one, other, thing), {"source": source, "target": target}
