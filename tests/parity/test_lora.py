"""LoRA against PEFT's: outputs, gradients, merged weights and files, over layer kinds and variants."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterkit import LoraConfig
from tests.parity.helpers import assert_parity, peft


class Net(nn.Module):
    """Three numbered layers of two, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"layers": nn.ModuleList(self.layer() for _ in range(3))})
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 4)

    @staticmethod
    def layer() -> nn.Module:
        return nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body["layers"]:
            x = x + torch.tanh(layer["value"](layer["query"](x)))
        return self.classifier(self.norm(x))


class Single(nn.Module):
    """One layer by the name ``target``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.target = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.target(x)


def seeded(make):
    def factory():
        torch.manual_seed(7)
        return make().eval()

    return factory


LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (3, 5, 8)),
    "linear_no_bias": (lambda: nn.Linear(8, 6, bias=False), (3, 8)),
    "transposed": (lambda: Conv1D(6, 8), (3, 5, 8)),
    "embedding": (lambda: nn.Embedding(10, 6), None),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "conv2d_no_bias": (lambda: nn.Conv2d(4, 6, (1, 3), bias=False), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, padding=1), (2, 4, 3, 3, 3)),
}
CONVS = ("conv1d", "conv2d", "conv2d_no_bias", "conv3d")


def single(name):
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    inputs = torch.randint(0, 10, (3, 5)) if shape is None else torch.randn(shape)
    return seeded(lambda: Single(make())), inputs


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}, {"bias": "lora_only"}])
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
