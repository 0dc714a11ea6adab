"""LoHa against PEFT's: outputs, gradients, merged weights and files, by the low-rank and by the dense route."""

from __future__ import annotations

import pytest
import torch

from adapterkit import LoHaConfig
from tests.parity.helpers import assert_parity, peft
from tests.parity.layers import Net, seeded, single


@pytest.mark.parametrize("r", [1, 4])  # 2 r² <= 6 takes the low-rank route
@pytest.mark.parametrize("layer", ["linear", "linear_no_bias", "conv1d", "conv2d", "conv2d_no_bias", "conv2d_grouped"])
def test_every_layer_kind(layer, r):
    factory, inputs = single(layer)
    kwargs = {"r": r, "alpha": 6, "target_modules": ["target"]}
    assert_parity(kwargs, LoHaConfig, peft.LoHaConfig, factory, inputs)


@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("layer", ["linear", "conv1d", "conv2d", "conv2d_no_bias", "conv2d_grouped"])
def test_effective_convolutions(layer, r):
    factory, inputs = single(layer)
    kwargs = {"r": r, "use_effective_conv2d": True, "target_modules": ["target"]}
    # PEFT differentiates by hand here, and takes the second product's factors for the first's.
    assert_parity(kwargs, LoHaConfig, peft.LoHaConfig, factory, inputs, same_gradients=layer == "linear")


@pytest.mark.parametrize(
    "variant",
    [
        {"rank_pattern": {"layers.1.query": 2}, "alpha_pattern": {"0.query": 32}},
        {"layers_to_transform": [0, 2], "init_weights": False},
        {"modules_to_save": ["classifier"]},
    ],
    ids=str,
)
def test_a_model_of_several_layers(variant):
    torch.manual_seed(3)
    kwargs = {"r": 4, "alpha": 8, "target_modules": ["query", "value"], **variant}
    assert_parity(kwargs, LoHaConfig, peft.LoHaConfig, seeded(Net), torch.randn(3, 5, 8))
