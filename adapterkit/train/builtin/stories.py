"""Short stories in which the end repeats the beginning: who gave what to whom decides who has it.

The words of the last sentence cannot be told from their neighbours, only from the story; who meets whom over what
differs between training and held-out stories.
"""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, words

FRAMES = (
    "{giver} had a {object} . {giver} gave the {object} to {taker} . now {taker} has the {object} .",
    "{giver} met {taker} in {place} . {taker} got the {object} from {giver} . so {taker} left with the {object} .",
    "once upon a time {giver} lost a {object} in {place} . then {taker} found the {object} in {place} .",
)


def make() -> Splits:
    """1200 training and 2 x 200 held-out examples ``{"text"}``."""
    return collect(_draw, train=1200, held_out=200)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    giver, taker = rng.sample(words.PEOPLE, 2)
    thing, place = rng.choice(words.OBJECTS), rng.choice(words.PLACES)
    text = rng.choice(FRAMES).format(giver=giver, taker=taker, object=thing, place=place)
    return part(giver, taker, thing), {"text": text}
