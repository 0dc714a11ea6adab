"""Short stories whose end repeats the beginning: who gave what to whom decides who has it.

The name and the object at the end cannot be told from their neighbours, only from the story; who gives what to whom
differs between training and held-out stories.
"""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, words

FRAMES = (
    ("{giver} had a {object} . {giver} gave the {object} to {taker} .", "now {taker} has the {object} ."),
    ("{giver} met {taker} in {place} . {taker} got the {object} from {giver} .", "so {taker} left with the {object} ."),
    ("once upon a time {giver} lost a {object} in {place} .", "then {taker} found the {object} in {place} ."),
)


def make() -> Splits:
    """2400 training and 2 x 250 held-out examples ``{"prompt", "completion"}``."""
    return collect(_draw, train=2400, held_out=250)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    giver, taker = rng.sample(words.PEOPLE, 2)
    thing, place = rng.choice(words.OBJECTS), rng.choice(words.PLACES)
    story = [text.format(giver=giver, taker=taker, object=thing, place=place) for text in rng.choice(FRAMES)]
    return part(giver, taker, thing), {"prompt": story[0], "completion": story[1]}
