"""Conversion to LoRA against PEFT's: the same product, rank and config for the same adapter."""

from __future__ import annotations

import peft
import pytest
import torch

import adapterkit
from adapterkit import LoHaConfig, convert_to_lora
from adapterkit.checkpoint.state import set_peft_model_state_dict
from tests.parity.helpers import peft_model, quiet, state_of
from tests.parity.layers import Net, seeded


@pytest.mark.parametrize("rank", [2, 0.8, 1.0])
@pytest.mark.parametrize("method", ["LoHaConfig", "LoKrConfig"])
def test_products_and_ranks(method, rank):
    fields = {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    theirs = peft_model(getattr(peft, method)(**fields), seeded(Net)())
    mine = adapterkit.get_peft_model(seeded(Net)(), getattr(adapterkit, method)(**fields))
    set_peft_model_state_dict(mine, state_of(theirs))
    with quiet():
        other, expected = peft.convert_to_lora(theirs, rank)
    config, state = convert_to_lora(mine, rank)
    for key in expected:
        if "lora_A" in key:
            second = key.replace("lora_A", "lora_B")
            product = expected[second] @ expected[key]
            torch.testing.assert_close(state[second] @ state[key], product, atol=1e-5, rtol=1e-4)
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            if rank != 1.0:  # at which rounding decides whether the last directions count
                assert state[key].shape == expected[key].shape
                assert config.at(name).r == other.rank_pattern.get(name, other.r)
            assert config.at(name).lora_alpha == config.at(name).r
    head = "base_model.model.classifier.weight"
    assert torch.equal(state[head], state_of(theirs)[head])


def test_peft_reads_what_is_written(tmp_path):
    mine = adapterkit.get_peft_model(seeded(Net)(), LoHaConfig(r=2, target_modules=["query", "value"])).eval()
    with torch.no_grad():
        for parameter in mine.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    adapterkit.save_as_lora(tmp_path, mine, 8)
    with quiet():
        back = peft.PeftModel.from_pretrained(seeded(Net)(), tmp_path).eval()
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(back(x), mine(x), atol=1e-4, rtol=1e-4)
