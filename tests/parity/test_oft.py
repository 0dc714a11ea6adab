"""OFT against PEFT's: outputs, gradients, merged weights and files.

Convolutions with a kernel larger than 1 are compared by their merged weights and files: there PEFT's forward rotates
image places rather than patches, and is not what its own merging gives (`tests/methods/test_oft.py`).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import OFTConfig, PeftModel, get_peft_model_state_dict
from tests.parity.helpers import (
    assert_parity,
    assert_same_merge,
    assert_same_tensors,
    peft,
    peft_model,
    quiet,
    state_of,
)
from tests.parity.layers import Net, Single, seeded, single

VARIANTS = [
    {},
    {"oft_block_size": 0, "r": 2},
    {"block_share": True},
    {"use_cayley_neumann": False},
    {"coft": True, "eps": 0.5},
    *({"num_cayley_neumann_terms": terms} for terms in (2, 3, 4, 6)),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("layer", ["linear", "linear_no_bias"])
def test_linear_layers(layer, variant):
    factory, inputs = single(layer)
    kwargs = {"oft_block_size": 4, "target_modules": ["target"], **variant}
    assert_parity(kwargs, OFTConfig, peft.OFTConfig, factory, inputs)


@pytest.mark.parametrize("variant", VARIANTS[:5], ids=str)
def test_embedding(variant):
    factory, inputs = single("embedding")
    kwargs = {"oft_block_size": 3, "target_modules": ["target"], **variant}
    assert_parity(kwargs, OFTConfig, peft.OFTConfig, factory, inputs)


@pytest.mark.parametrize("variant", VARIANTS[:5], ids=str)
def test_pointwise_convolution(variant):
    torch.manual_seed(3)
    factory = seeded(lambda: Single(nn.Conv2d(8, 6, 1, stride=2, padding=1)))
    kwargs = {"oft_block_size": 4, "target_modules": ["target"], **variant}
    assert_parity(kwargs, OFTConfig, peft.OFTConfig, factory, torch.randn(2, 8, 5, 5))


@pytest.mark.parametrize("variant", VARIANTS[:5], ids=str)
def test_files_and_merged_weights_of_convolutions(variant, tmp_path):
    torch.manual_seed(3)
    factory = seeded(lambda: Single(nn.Conv2d(4, 6, 3, stride=2, padding=1)))
    config = peft.OFTConfig(**{"oft_block_size": 4, "target_modules": ["target"], **variant})
    theirs = peft_model(config, factory())
    with quiet():
        theirs.save_pretrained(tmp_path / "theirs")
    ours = PeftModel.from_pretrained(factory(), tmp_path / "theirs")
    assert_same_tensors(get_peft_model_state_dict(ours), state_of(theirs))
    ours.save_pretrained(tmp_path / "ours")
    with quiet():
        back = peft.PeftModel.from_pretrained(factory(), tmp_path / "ours")
    assert_same_tensors(get_peft_model_state_dict(ours), state_of(back))
    assert_same_merge(ours, theirs, torch.testing.assert_close)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"bias": "all"},
        {"bias": "oft_only", "layers_to_transform": [0, 2]},
        {"init_weights": False, "modules_to_save": ["classifier"]},
    ],
    ids=str,
)
def test_a_model_of_several_layers(variant):
    torch.manual_seed(3)
    kwargs = {"oft_block_size": 2, "target_modules": ["query", "value"], **variant}
    assert_parity(kwargs, OFTConfig, peft.OFTConfig, seeded(Net), torch.randn(3, 5, 8))
