"""LoKr against PEFT's: outputs, gradients, merged weights and files, over the ways to factor a weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoKrConfig
from adapterkit.methods.lokr.adapter import divisors
from tests.parity.helpers import assert_parity, peft
from tests.parity.layers import Net, Single, seeded, single


@pytest.mark.parametrize("variant", [{}, {"r": 1}, {"r": 1, "decompose_both": True, "decompose_factor": 4}], ids=str)
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("layer", ["linear", "linear_no_bias", "conv1d", "conv2d", "conv2d_no_bias", "conv2d_grouped"])
def test_every_layer_kind(layer, effective, variant):
    if layer == "conv1d" and effective and variant == {"r": 1}:
        pytest.skip("PEFT cannot compute this one: its Kronecker product views a tensor that is not contiguous")
    factory, inputs = single(layer)
    kwargs = {"r": 4, "alpha": 6, "use_effective_conv2d": effective, "target_modules": ["target"], **variant}
    assert_parity(kwargs, LoKrConfig, peft.LoKrConfig, factory, inputs)


@pytest.mark.parametrize("factor", [-1, 8])
def test_both_matrices_factored(factor):
    torch.manual_seed(3)
    factory = seeded(lambda: Single(nn.Linear(64, 48)))
    kwargs = {"r": 2, "target_modules": ["target"], "decompose_both": True, "decompose_factor": factor}
    assert_parity(kwargs, LoKrConfig, peft.LoKrConfig, factory, torch.randn(2, 3, 64))


@pytest.mark.parametrize(
    "variant",
    [
        {"rank_pattern": {"layers.1.query": 2}, "alpha_pattern": {"0.query": 32}},
        {"layers_to_transform": [0, 2], "init_weights": False},
        {"modules_to_save": ["classifier"], "init_weights": "lycoris"},
    ],
    ids=str,
)
def test_a_model_of_several_layers(variant):
    torch.manual_seed(3)
    kwargs = {"r": 4, "alpha": 8, "target_modules": ["query", "value"], **variant}
    assert_parity(kwargs, LoKrConfig, peft.LoKrConfig, seeded(Net), torch.randn(3, 5, 8))


def test_divisors_are_those_of_peft():
    from peft.tuners.lokr.layer import factorization

    for size in [1, 2, 7, 12, 96, 127, 128, 768, 1000, 3072]:
        for factor in [-1, 1, 2, 3, 4, 8, 16, 100]:
            assert divisors(size, factor) == factorization(size, factor)
