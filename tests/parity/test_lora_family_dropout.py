"""Dropout in training against PEFT's, with the same mask: what a start takes away from the base is not dropped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adapterkit
from adapterkit import LoraConfig, PeftModel, get_peft_model_state_dict
from adapterkit.methods.lora import adapter
from adapterkit.nn import low_rank
from tests.parity.helpers import add_noise, gradients, peft, quiet, run, state_of
from tests.parity.layers import Net, seeded

P = 0.5
X = torch.linspace(-2, 2, 120).reshape(3, 5, 8).sin()


def mask(like: torch.Tensor) -> torch.Tensor:
    """The same for every input of one shape."""
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(5)) >= P


class SameMask(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * mask(x) / (1 - P)


@pytest.fixture(autouse=True)
def _same_mask(monkeypatch):
    monkeypatch.setattr(adapter, "seeded_dropout", lambda x, dropout: SameMask()(x))
    monkeypatch.setattr(low_rank, "keep_mask", lambda like, dropout, seed: mask(like))


@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "onion"])
@pytest.mark.parametrize("scheme", [True, False, "orthogonal", "pissa", "olora"])
def test_training(scheme, hooked, tmp_path):
    kwargs = {"r": 2, "lora_dropout": P, "init_lora_weights": scheme, "target_modules": ["query", "value"]}
    with quiet():
        theirs = peft.get_peft_model(seeded(Net)(), peft.LoraConfig(**kwargs))
        add_noise(theirs)
        theirs.save_pretrained(tmp_path)
    for layer in theirs.modules():
        if isinstance(layer, peft.tuners.lora.Linear):
            layer.lora_dropout["default"] = SameMask()
    mine = PeftModel.from_pretrained(seeded(Net)(), tmp_path, is_trainable=True)
    if hooked:
        for layer in mine.base_model.layers.values():
            layer.base_layer.register_forward_hook(lambda *_: None)
    state, their_state = get_peft_model_state_dict(mine), state_of(theirs)
    assert not torch.allclose(run(mine.train(), X), run(mine.eval(), X))
    mine.train()
    theirs.train()
    torch.testing.assert_close(run(mine, X), run(theirs, X), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients(mine, state, X), gradients(theirs, their_state, X), atol=1e-5, rtol=1e-4)


def test_a_magnitude_scales_the_base_undropped():
    """PEFT computes ``W x + (m - 1) W drop(x) + m s B A drop(x)``; here the base is as it is, as without dropout:
    ``m (W x + s B A drop(x))``."""
    layer = seeded(lambda: nn.Sequential(nn.Linear(8, 6, bias=False)))()
    model = adapterkit.get_peft_model(layer, LoraConfig(r=2, use_dora=True, lora_dropout=P, target_modules=["0"]))
    add_noise(model)
    made, weight = model.get_base_model()[0].adapters["default"], model.get_base_model()[0].base_layer.weight
    scale = made.lora_magnitude_vector / made.norm()
    update = made.scaling * SameMask()(X) @ made.lora_A.weight.T @ made.lora_B.weight.T
    torch.testing.assert_close(model.train()(X), scale * (X @ weight.T + update))
