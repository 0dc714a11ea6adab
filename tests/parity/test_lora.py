"""LoRA against PEFT's: outputs, gradients, merged weights and files, over layer kinds and variants."""

from __future__ import annotations

import pytest
import torch

from adapterkit import LoraConfig
from tests.parity.helpers import assert_parity, peft
from tests.parity.layers import CONVS, LAYERS, Net, seeded, single


@pytest.mark.filterwarnings("ignore:bias='lora_only' trains nothing")  # where the layer has none
@pytest.mark.parametrize(
    "variant", [{}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}, {"bias": "lora_only"}]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_kind(layer, variant):
    factory, inputs = single(layer)
    assert_parity({"r": 4, "target_modules": ["target"], **variant}, LoraConfig, peft.LoraConfig, factory, inputs)


@pytest.mark.parametrize("layer", ["linear", "transposed", *CONVS])
def test_lora_bias(layer):
    factory, inputs = single(layer)
    merge = "no_bias" not in layer  # a bias cannot be folded into a layer that has none
    kwargs = {"r": 4, "lora_bias": True, "target_modules": ["target"]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, factory, inputs, merge=merge)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"bias": "all"},
        {"bias": "lora_only", "use_dora": True},
        {"target_modules": ["query"], "rank_pattern": {"layers.1.query": 2}, "alpha_pattern": {"0.query": 32}},
        {"rank_pattern": {r"layers\.[02]\.(query|value)": 3}},
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"exclude_modules": ["1.query"]},
        {"exclude_modules": r".*\.2\..*"},
        {"target_modules": r".*layers\.[01]\.query"},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["classifier"]},
        {"modules_to_save": ["classifier", "norm"], "bias": "all", "use_rslora": True},
    ],
    ids=str,
)
def test_a_model_of_several_layers(variant):
    torch.manual_seed(3)
    kwargs = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **variant}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(Net), torch.randn(3, 5, 8))


# pissa_niter_<n> is left out: what PEFT saves for it depends on the random state at loading, also in PEFT.
@pytest.mark.parametrize("scheme", ["gaussian", "orthogonal", False, "olora", "pissa"])
def test_starts(scheme):
    torch.manual_seed(3)
    kwargs = {"r": 4, "init_lora_weights": scheme, "target_modules": ["query", "value"]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(Net), torch.randn(3, 5, 8))
