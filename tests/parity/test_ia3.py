"""(IA)³ against PEFT's: outputs, gradients, merged weights and files."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from adapterkit import IA3Config
from tests.parity.helpers import assert_parity, peft
from tests.parity.layers import Net, seeded, single


@pytest.mark.parametrize("feedforward", [[], ["target"]])
@pytest.mark.parametrize("layer", ["linear", "linear_no_bias", "transposed", "conv2d", "conv2d_no_bias", "conv3d"])
def test_every_layer_kind(layer, feedforward):
    factory, inputs = single(layer)
    kwargs = {"target_modules": ["target"], "feedforward_modules": feedforward}
    assert_parity(kwargs, IA3Config, peft.IA3Config, factory, inputs)


@pytest.mark.parametrize("feedforward", [[], ["target"]])
def test_grouped_convolution(feedforward):
    factory, inputs = single("conv2d_grouped")
    kwargs = {"target_modules": ["target"], "feedforward_modules": feedforward}
    assert_parity(kwargs, IA3Config, peft.IA3Config, factory, inputs)


@pytest.mark.parametrize(
    "variant",
    [
        {"feedforward_modules": ["value"]},
        {"feedforward_modules": r".*[12]\.value"},
        {"feedforward_modules": ["1.value"], "target_modules": ["query", "1.value"]},
        {"feedforward_modules": [], "modules_to_save": ["classifier"], "init_ia3_weights": False},
    ],
    ids=str,
)
def test_a_model_of_several_layers(variant):
    torch.manual_seed(3)
    kwargs = {"target_modules": ["query", "value"], **variant}
    assert_parity(kwargs, IA3Config, peft.IA3Config, seeded(Net), torch.randn(3, 5, 8))


def bert():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=20, **sizes))


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16))


@pytest.mark.parametrize("model", [bert, gpt2])
def test_default_targets(model):
    ids = torch.arange(10).reshape(2, 5)
    assert_parity({}, IA3Config, peft.IA3Config, seeded(model), ids)
