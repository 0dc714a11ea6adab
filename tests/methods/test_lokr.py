"""What is LoKr's own: the product over the reshaped input is the one with the whole matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapterkit import LoKrConfig
from adapterkit.methods.lokr.adapter import LoKrAdapter, divisors
from adapterkit.nn.view import LayerView


def adapter(layer, **settings):
    torch.manual_seed(0)
    return LoKrAdapter(LoKrConfig(**{"r": 2, "init_weights": False, **settings}), LayerView(layer))


@pytest.mark.parametrize("settings", [{}, {"r": 16}, {"decompose_both": True}, {"decompose_factor": 2}], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 64), (64, 7)])
def test_no_kronecker_product_is_needed(rows, columns, settings):
    layer = nn.Linear(columns, rows)
    lokr, x = adapter(layer, **settings), torch.randn(2, 3, columns)
    whole = torch.kron(first(lokr), second(lokr)) * lokr.scaling
    torch.testing.assert_close(lokr.adapt_output(layer(x), x), layer(x) + F.linear(x, whole), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lokr.adapt_weight(layer.weight), layer.weight + whole)


def first(lokr):
    return lokr.lokr_w1 if lokr.lokr_w1 is not None else lokr.lokr_w1_a @ lokr.lokr_w1_b


def second(lokr):
    return lokr.lokr_w2 if lokr.lokr_w2 is not None else lokr.lokr_w2_a @ lokr.lokr_w2_b


def test_an_embedding_looks_up_rows_of_both_factors():
    layer = nn.Embedding(12, 8)
    lokr, ids = adapter(layer), torch.arange(12).reshape(3, 4)
    torch.testing.assert_close(lokr.adapt_output(layer(ids), ids), lokr.adapt_weight(layer.weight)[ids])


@pytest.mark.parametrize("start", [True, "lycoris"])
def test_starts_as_nothing(start):
    for settings in ({}, {"r": 1}, {"r": 1, "decompose_both": True, "decompose_factor": 8}):
        lokr = adapter(nn.Linear(64, 48), init_weights=start, **settings)
        assert not lokr.adapt_weight(torch.zeros(48, 64)).any()


def test_dropout_scales_only_if_asked():
    layer, x = nn.Linear(16, 16, bias=False), torch.randn(2, 16)
    plain = adapter(layer, r=16).adapt_weight(torch.zeros(16, 16)) @ x.T
    for scale in (False, True):
        lokr = adapter(layer, r=16, rank_dropout=0.5, rank_dropout_scale=scale)
        ratio = lokr.adapt_output(torch.zeros(2, 16), x).T / plain
        kept = ratio[ratio.abs() > 1e-6]
        torch.testing.assert_close(kept, torch.full_like(kept, 32 / len(kept) if scale else 1.0), atol=1e-3, rtol=1e-3)


def test_divisors():
    assert divisors(127, -1) == (1, 127)
    assert divisors(128, -1) == (8, 16)
    assert divisors(128, 4) == (4, 32)
    assert divisors(36, 5) == (4, 9)
    for size in range(1, 200):
        small, large = divisors(size, -1)
        assert small * large == size
        assert small <= large


def test_a_factor_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be positive, or -1"):
        LoKrConfig(decompose_factor=0)
