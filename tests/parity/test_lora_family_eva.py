"""EVA against PEFT's: the same directions and ranks from the same batches, and files."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adapterkit
from adapterkit import LoraConfig, initialize_lora_eva_weights
from adapterkit.checkpoint.state import get_peft_model_state_dict
from tests.parity.helpers import quiet, run, state_of
from tests.parity.layers import seeded

SIZES = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def base():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def batches(count=4):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(0, 30, (6, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 8:] = 0
        labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.2, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


@pytest.mark.parametrize(
    "settings",
    [{}, {"rho": 1.0}, {"whiten": True, "tau": 0.9}, {"use_label_mask": False, "adjust_scaling_factors": False}],
    ids=str,
)
def test_directions_ranks_and_scales(settings, tmp_path):
    # Where layers share their input, PEFT whitens the one table of directions once for each of them: twice for two.
    targets = ["q_proj", "down_proj"] if settings.get("whiten") else ["q_proj", "v_proj", "down_proj"]
    fields = {"r": 3, "target_modules": targets, "init_lora_weights": "eva"}
    fields |= {"rank_pattern": {"1.self_attn.q_proj": 4}, "alpha_pattern": {"down_proj": 5}}
    with quiet():
        theirs = peft.get_peft_model(seeded(base)(), peft.LoraConfig(**fields, eva_config=peft.EvaConfig(**settings)))
        peft.initialize_lora_eva_weights(theirs, batches(), show_progress_bar=False)
    mine = adapterkit.get_peft_model(seeded(base)(), LoraConfig(**fields, eva_config=settings))
    initialize_lora_eva_weights(mine, batches())
    expected, state = state_of(theirs), get_peft_model_state_dict(mine)
    assert {k: t.shape for k, t in state.items()} == {k: t.shape for k, t in expected.items()}
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, atol=1e-4, rtol=1e-4, msg=key)
    config, other = mine.peft_config["default"], theirs.peft_config["default"]
    assert config.rank_pattern == other.rank_pattern
    assert config.alpha_pattern == pytest.approx(other.alpha_pattern)
    with torch.no_grad():
        for tensor in state.values():
            tensor.add_(0.1)
    mine.save_pretrained(tmp_path)
    with quiet():
        back = peft.PeftModel.from_pretrained(seeded(base)(), tmp_path).eval()
    ids = {"input_ids": torch.arange(10).reshape(2, 5)}
    torch.testing.assert_close(run(back, ids), run(mine.eval(), ids))
    again = adapterkit.PeftModel.from_pretrained(seeded(base)(), tmp_path)
    assert torch.equal(run(again, ids), run(mine, ids))
