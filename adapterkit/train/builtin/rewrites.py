"""Rewriting from the other side: ``today tom gave the old ball to ann`` becomes ``ann got the old ball from tom``."""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, sentence, words

VERBS = {"gave": "got", "sold": "bought"}
TIMES = ("", "today", "yesterday")
AGES = ("", "old", "new")


def make() -> Splits:
    """2400 training and 2 x 100 held-out examples ``{"source", "target"}``; who meets whom over what differs."""
    return collect(_draw, train=2400, held_out=100)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    one, other = rng.sample(words.PEOPLE, 2)
    verb, age, thing = rng.choice(list(VERBS)), rng.choice(AGES), rng.choice(words.OBJECTS)
    source = sentence([rng.choice(TIMES), one, verb, "the", age, thing, "to", other])
    target = sentence([other, VERBS[verb], "the", age, thing, "from", one])
    return part(one, other, thing), {"source": source, "target": target}
