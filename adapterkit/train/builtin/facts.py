"""Questions on a few facts: the answer is a span of the context, found by whom the question names."""

from __future__ import annotations

import random
from typing import Any

from adapterkit.train.builtin import Splits, collect, part, words

RELATIONS = (
    ("{who} lives in {value} .", "where does {who} live ?", words.PLACES),
    ("{who} drinks {value} .", "what does {who} drink ?", words.DRINKS),
    ("{who} works as a {value} .", "what does {who} work as ?", words.JOBS),
)


def make() -> Splits:
    """1600 training and 2 x 250 held-out examples in SQuAD's columns; who goes with which answer differs."""
    return collect(_draw, train=1600, held_out=250)


def _draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
    people = rng.sample(words.PEOPLE, 2)
    relations = rng.sample(RELATIONS, 2)
    facts = [(who, rng.choice(relation[2]), relation) for who in people for relation in relations]
    rng.shuffle(facts)
    who, answer, (statement, question, _) = rng.choice(facts)
    stated = statement.format(who=who, value=answer)
    context = " ".join(relation[0].format(who=person, value=value) for person, value, relation in facts)
    start = context.index(stated) + stated.index(answer, len(who))
    example = {
        "context": context,
        "question": question.format(who=who),
        "answers": {"text": [answer], "answer_start": [start]},
    }
    return part(who, answer), example
