"""The built-in data: the same everywhere, apart in what decides, and beyond memory, words and the majority."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from adapterkit.registry import resolve, tasks
from adapterkit.train.builtin import collect, entities, facts, rewrites, sentiment, similarity, stories, vocabulary
from adapterkit.train.tokenizers import builtin_tokenizer

MODULES = {
    "seq_cls": sentiment,
    "token_cls": entities,
    "causal_lm": stories,
    "seq_2_seq_lm": rewrites,
    "question_ans": facts,
    "feature_extraction": similarity,
}
DIGESTS = {
    "sentiment": "f1bbe04872d9ab9e",
    "entities": "71f529e07b08755a",
    "stories": "5daf43f920d43f74",
    "rewrites": "c200b21cf782c6e1",
    "facts": "58cffef98e1850f1",
    "similarity": "fcbf8bdeb0d4a47e",
}


def words_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [word for item in values for word in words_of(item)]


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.__name__.rpartition(".")[2])
class TestEvery:
    def test_the_same_everywhere(self, module: Any) -> None:
        digest = hashlib.sha256(json.dumps(module.make(), sort_keys=True).encode()).hexdigest()
        assert digest[:16] == DIGESTS[module.__name__.rpartition(".")[2]]

    def test_no_example_is_seen_twice(self, module: Any) -> None:
        seen = Counter(json.dumps(row) for split in module.make().values() for row in split)
        assert set(seen.values()) == {1}

    def test_vocabulary_covers_it(self, module: Any) -> None:
        made = module.make()
        rows = [{**row, "label": None, "tags": None} for split in made.values() for row in split]
        used = {word for row in rows for word in words_of(row)}
        assert used <= set(vocabulary())

    def test_held_out_words_are_seen_in_training(self, module: Any) -> None:
        made = module.make()
        train, test = (set(words_of(made[name])) for name in ("train", "test"))
        assert test <= train


def test_every_task_has_data() -> None:
    for name, module in MODULES.items():
        assert resolve(tasks[name].pipeline).builtin() == module.make()


def test_classes_are_even() -> None:
    for split in sentiment.make().values():
        assert len(set(Counter(row["label"] for row in split).values())) == 1


def test_sentiment_is_not_in_the_words() -> None:
    made = sentiment.make()
    counts = CountVectorizer(ngram_range=(1, 1))
    train = counts.fit_transform([row["text"] for row in made["train"]])
    model = LogisticRegression(max_iter=500).fit(train, [row["label"] for row in made["train"]])
    test = counts.transform([row["text"] for row in made["test"]])
    assert model.score(test, [row["label"] for row in made["test"]]) < 0.65


def test_names_are_of_every_kind() -> None:
    kinds: dict[str, set[str]] = {}
    for row in entities.make()["train"]:
        for token, tag in zip(row["tokens"], row["tags"], strict=True):
            if tag.startswith("B-") and token[0].isupper():
                kinds.setdefault(token, set()).add(tag)
    assert all(tags == {"B-PER", "B-LOC", "B-ORG"} for tags in kinds.values())


def test_answers_are_where_they_are_said_to_be() -> None:
    for row in facts.make()["test"]:
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        assert row["context"][start : start + len(text)] == text
        assert row["context"][start - 1] == " "


def test_more_examples_than_there_are() -> None:
    with pytest.raises(ValueError, match="cannot make so many"):
        collect(lambda rng: ("train", {"text": str(rng.randrange(5))}), train=6, held_out=0)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
class TestTokenizer:
    def test_known_words_are_whole(self, family: str) -> None:
        tokenizer = builtin_tokenizer(family)
        text = " ".join(vocabulary())
        tokens = tokenizer.tokenize(text)
        assert len(tokens) == len(vocabulary())

    @pytest.mark.parametrize(
        "text", ["the plot was good", "Ünïcode 日本 \n two  blanks\t.", "tom's ballgame, 3.14!", "a"]
    )
    def test_any_text_comes_back(self, family: str, text: str) -> None:
        tokenizer = builtin_tokenizer(family)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
