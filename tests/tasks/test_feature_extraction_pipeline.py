"""Pairs of texts to cosines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from adapterkit.tasks.feature_extraction.pipeline import cosent, cosines, mean_vectors
from tests.pipelines import data_of, pipeline_of

ROWS = [{"sentence1": "the plot", "sentence2": "was", "score": 1}, {"sentence1": "a", "sentence2": "bad", "score": 0}]


def test_batches_hold_both_sides() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("feature_extraction", data)
    encoded = pipeline.features(data.train)
    batch = pipeline.collate([encoded[0], encoded[1]])
    texts = pipeline.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts == ["the plot", "a", "was", "bad"]
    assert batch["labels"].tolist() == [1.0, 0.0]


def test_mean_of_own_positions() -> None:
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])  # position 0 is a virtual token
    expected = torch.stack([hidden[0, 1:3].mean(0), hidden[1, 1:].mean(0)])
    assert torch.equal(mean_vectors(hidden, mask), expected)


def test_cosines_pair_the_halves() -> None:
    hidden = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 2)
    means = hidden.mean(1)
    expected = functional.cosine_similarity(means[:2], means[2:])
    assert torch.allclose(cosines(hidden, mask), expected)


def test_cosent_by_hand() -> None:
    similar, scores = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([0.0, 1.0, 0.0])
    # pairs with a lower score first: (0, 1) and (2, 1)
    expected = torch.log(1 + torch.exp(torch.tensor(20 * 0.8)) + torch.exp(torch.tensor(20 * 0.4)))
    assert cosent(similar, scores).item() == pytest.approx(expected.item())


def test_cosent_without_a_pair_is_zero_and_has_a_gradient() -> None:
    similar = torch.tensor([0.2, 0.4], requires_grad=True)
    loss = cosent(similar, torch.tensor([1.0, 1.0]))
    loss.backward()
    assert loss.item() == 0
    assert similar.grad is not None


def test_cosent_does_not_depend_on_the_scale_of_scores() -> None:
    similar, scores = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([0.0, 1.0, 3.0])
    assert torch.equal(cosent(similar, scores), cosent(similar, scores * 5 + 2))


def test_scores_correlation() -> None:
    found = pipeline_of("feature_extraction").score(np.array([0.1, 0.2, 0.9]), np.array([1.0, 2.0, 3.0]), None)  # type: ignore[arg-type]
    assert found.keys() == {"spearman", "pearson"}
    assert found["spearman"] == pytest.approx(1)
