"""LoRA+ and LoRA-FA against PEFT's: the same weights after some steps."""

from __future__ import annotations

import peft.optimizers.lorafa
import pytest
import torch
from torch import nn

import adapterkit
from adapterkit import LoraConfig, create_lorafa_optimizer, create_loraplus_optimizer
from adapterkit.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from tests.parity.helpers import peft_model, quiet, state_of
from tests.parity.layers import seeded

FIELDS = {"r": 4, "lora_alpha": 3, "rank_pattern": {"b": 2}, "target_modules": ["a", "b"], "modules_to_save": ["head"]}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(self.embed(x))))))


def steps(model, optimizer, count=4):
    x = torch.arange(10).reshape(2, 5)
    for step in range(count):
        optimizer.zero_grad()
        (model(x).sin() * (step + 1)).sum().backward()
        optimizer.step()


def both(fields):
    """PEFT's model and ours with the same tensors."""
    theirs = peft_model(peft.LoraConfig(**fields), seeded(Small)())
    mine = adapterkit.get_peft_model(seeded(Small)(), LoraConfig(**fields)).eval()
    with quiet():
        set_peft_model_state_dict(mine, state_of(theirs))
    return mine, theirs


def assert_equal(mine, theirs):
    with quiet():
        expected = state_of(theirs)
    for key, tensor in get_peft_model_state_dict(mine).items():
        torch.testing.assert_close(tensor, expected[key], msg=key)


@pytest.mark.parametrize(
    "extra", [{}, {"target_modules": ["a", "b", "embed"]}, {"lora_bias": True}, {"use_dora": True}]
)
def test_loraplus(extra):
    mine, theirs = both({**FIELDS, **extra})
    settings = {"lr": 0.05, "loraplus_lr_ratio": 4.0, "loraplus_weight_decay": 0.1, "loraplus_lr_embedding": 0.01}
    ours = create_loraplus_optimizer(mine, torch.optim.AdamW, **settings)
    other = peft.optimizers.create_loraplus_optimizer(theirs, torch.optim.AdamW, **settings)
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in other.param_groups]
    assert [len(g["params"]) for g in ours.param_groups] == [len(g["params"]) for g in other.param_groups]
    steps(mine, ours)
    steps(theirs, other)
    assert_equal(mine, theirs)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, {"bias": "all"}])
def test_lorafa(extra, monkeypatch):
    # PEFT multiplies the gradient in bfloat16 wherever the machine can, here in its own type.
    monkeypatch.setattr(peft.optimizers.lorafa, "is_bf16_available", lambda: False)
    mine, theirs = both({**FIELDS, **extra})
    ours = create_lorafa_optimizer(mine, r=4, lora_alpha=3, lr=0.05, weight_decay=0.1)
    with quiet():
        other = peft.optimizers.create_lorafa_optimizer(theirs, r=4, lora_alpha=3, lr=0.05, weight_decay=0.1)
    steps(mine, ours)
    steps(theirs, other)
    assert_equal(mine, theirs)
    assert not any(p.requires_grad for n, p in mine.named_parameters() if "lora_A" in n)
