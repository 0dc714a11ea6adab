"""HRA: the contract, what is its own, and PEFT's numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from adapterkit_hra import HraConfig
from torch import nn

from adapterkit import get_peft_model
from adapterkit.nn.view import LayerView
from adapterkit.testing import AdapterContract


class TestHra(AdapterContract):
    config = HraConfig(r=4)


class TestOrthogonalised(AdapterContract):
    config = HraConfig(r=3, apply_GS=True)
    layers = {"linear": nn.Linear(8, 6), "conv2d": nn.Conv2d(8, 6, (1, 3), padding="same", dilation=2)}
    starts_as_base = False


class TestUnpaired(AdapterContract):
    config = HraConfig(r=3, init_weights=False)
    layers = (nn.Linear(8, 6),)
    starts_as_base = False


def adapter(size: int, **fields):
    config = HraConfig(**fields)
    return config.adapter_class()(config, LayerView(nn.Linear(size, size, bias=False)))


@pytest.mark.parametrize("apply_GS", [False, True])
@pytest.mark.parametrize("r", [1, 2, 5])
def test_is_the_product_of_its_reflections(apply_GS, r):
    torch.manual_seed(0)
    hra = adapter(6, r=r, apply_GS=apply_GS, init_weights=False).double()
    u = torch.linalg.qr(hra.hra_u).Q if apply_GS else nn.functional.normalize(hra.hra_u, dim=0)
    product = torch.eye(6, dtype=torch.float64)
    for column in u.T:
        product = product @ (torch.eye(6, dtype=torch.float64) - 2 * torch.outer(column, column))
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(hra.adapt_input(x), x @ product.T)
    torch.testing.assert_close(hra.adapt_weight(torch.eye(6, dtype=torch.float64)), product)


def test_keeps_lengths():
    torch.manual_seed(0)
    hra, x = adapter(6, r=5, init_weights=False), torch.randn(4, 6)
    torch.testing.assert_close(hra.adapt_input(x).norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_length_of_a_reflection_does_not_matter(scale):
    torch.manual_seed(0)
    hra, x = adapter(6, r=4, init_weights=False), torch.randn(4, 6)
    before = hra.adapt_input(x)
    hra.hra_u.data *= scale
    torch.testing.assert_close(hra.adapt_input(x), before, atol=1e-5, rtol=1e-4)


def test_saves_no_activation_per_reflection():
    """The reason for the compact form: what backward keeps does not grow with r times the batch."""
    hra, x = adapter(64, r=8), torch.randn(512, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        hra.adapt_input(x)
    assert sum(n for n in kept if n >= 512 * 8) <= 512 * (64 + 2 * 8)


def test_how_it_started_is_no_reason_to_refuse_a_file(tmp_path):
    base, config = nn.Sequential(nn.Linear(6, 6)), HraConfig(r=2, target_modules=["0"])
    model = get_peft_model(copy.deepcopy(base), config.model_copy(update={"init_weights": False}))
    model.save_pretrained(tmp_path)
    other = get_peft_model(base, config)
    other.load_adapter(tmp_path, "default")
    assert torch.equal(*(each.base_model.layers["0"].adapters["default"].hra_u for each in (model, other)))
