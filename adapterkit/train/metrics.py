"""Metrics: scikit-learn's and SciPy's where they have them, small ones of our own where they do not."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics

Span = tuple[str, int, int]
"""Type, first position and position after the last."""


def classification(predicted: ArrayLike, expected: ArrayLike) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews correlation of class indices; the last is 0 where there is one class alone."""
    alone = len(np.union1d(np.asarray(predicted), np.asarray(expected))) < 2
    return {
        "accuracy": float(metrics.accuracy_score(expected, predicted)),
        "f1": float(metrics.f1_score(expected, predicted, average="macro", zero_division=0)),
        "mcc": 0.0 if alone else float(metrics.matthews_corrcoef(expected, predicted)),
    }


def regression(predicted: ArrayLike, expected: ArrayLike) -> dict[str, float]:
    """Pearson and Spearman correlation and mean squared error; a correlation with a constant is 0."""
    x, y = np.asarray(predicted, dtype=float), np.asarray(expected, dtype=float)
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return {
        "pearson": 0.0 if constant else float(stats.pearsonr(x, y).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(x, y).statistic),
        "mse": float(np.mean((x - y) ** 2)),
    }


INNER, LAST, ALONE = "IM", "EL", "SUW"
"""Prefixes of tags beside ``B``: within an entity, at its end, and for one of a single word. BIO has the first of
them, IOBES, BILOU, BMES and BMEWO all three, each in its own letters."""


def is_entity(tag: str) -> bool:
    """Whether a tag marks a part of an entity: ``B-PER``, but not ``O``."""
    prefix, _, name = tag.partition("-")
    return bool(name) and len(prefix) == 1 and prefix in f"B{INNER}{LAST}{ALONE}"


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities of a tagged sentence, as CoNLL's scorer reads it.

    An entity goes on over inner and last tags of its own type; after a last tag, or a single one, it is over. An inner
    or last tag that continues nothing begins an entity.
    """
    found: set[Span] = set()
    kind, start, over = "", 0, False
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (over or name != kind or prefix not in (*INNER, *LAST)):
            found.add((kind, start, position))
            kind = ""
        if is_entity(tag) and not kind:
            kind, start = name, position
        over = prefix in (*LAST, *ALONE)
    return found


def entities(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over whole entities, and the accuracy of single tags."""
    pairs = list(zip(predicted, expected, strict=True))
    guessed = sum(len(spans(guess)) for guess, _ in pairs)
    wanted = sum(len(spans(truth)) for _, truth in pairs)
    hits = sum(len(spans(guess) & spans(truth)) for guess, truth in pairs)
    tags = [left == right for guess, truth in pairs for left, right in zip(guess, truth, strict=True)]
    precision, recall = hits / max(guessed, 1), hits / max(wanted, 1)
    return {
        "f1": harmonic_mean(precision, recall),
        "precision": precision,
        "recall": recall,
        "accuracy": sum(tags) / max(len(tags), 1),
    }


def harmonic_mean(precision: float, recall: float) -> float:
    """F1 of precision and recall; 0 where both are."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def rouge_l(predicted: str, expected: str) -> float:
    """ROUGE-L (Lin, 2004), https://aclanthology.org/W04-1013: F1 of the longest common subsequence of words.

    Words are runs of letters and digits, in lower case and without stemming.
    """
    guess, truth = _words(predicted), _words(expected)
    if not guess or not truth:
        return float(guess == truth)
    common = longest_common_subsequence(guess, truth)
    return harmonic_mean(common / len(guess), common / len(truth))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest sequence that is left of both by leaving items out."""
    row = [0] * (len(right) + 1)
    for item in left:
        diagonal = 0
        for index, other in enumerate(right, start=1):
            above = row[index]
            row[index] = diagonal + 1 if item == other else max(above, row[index - 1])
            diagonal = above
    return row[-1]


def written(predicted: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """ROUGE-L and exact match of written texts, means over all pairs."""
    pairs = list(zip(predicted, expected, strict=True))
    return {
        "rougeL": float(np.mean([rouge_l(guess, truth) for guess, truth in pairs])),
        "exact_match": float(np.mean([guess.strip() == truth.strip() for guess, truth in pairs])),
    }


def normalise_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, no punctuation, no articles, single blanks."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))


def answer_f1(predicted: str, expected: str) -> float:
    """F1 of the words of two answers; an empty answer agrees with an empty one alone."""
    guess, truth = normalise_answer(predicted).split(), normalise_answer(expected).split()
    if not guess or not truth:
        return float(guess == truth)
    common = (Counter(guess) & Counter(truth)).total()
    return harmonic_mean(common / len(guess), common / len(truth))


def answers(predicted: Sequence[str], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's exact match and F1, the best over the accepted answers; a question without any expects ``""``."""
    exact, f1 = [], []
    for guess, accepted in zip(predicted, expected, strict=True):
        truths = list(accepted) or [""]
        exact.append(max(float(normalise_answer(guess) == normalise_answer(truth)) for truth in truths))
        f1.append(max(answer_f1(guess, truth) for truth in truths))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}
