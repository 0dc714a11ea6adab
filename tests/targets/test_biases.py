"""Biases of modules that have others in them, and of layers whose class has a call of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterkit import LoraConfig, get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from adapterkit.errors import CheckpointError
from tests.models import move


class NormAct(nn.BatchNorm2d):
    """A normalisation that calls its activation, as those of vision models do."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Head(nn.Module):
    """Holds the bias that a layer in it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(4, 2)
        self.bias = self.decoder.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("mode", "where"), [("all", "the model has no bias"), ("lora_only", "no layer that is adapted has a bias")]
)
def test_a_bias_that_is_not_there_is_told_but_of_a_file(mode, where):
    def bare() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4, bias=False))

    config = LoraConfig(r=2, target_modules=["0"], bias=mode)
    with pytest.warns(UserWarning, match=f"bias='{mode}' trains nothing: {where} of its own"):
        get_peft_model(bare(), config)
    get_peft_model(bare(), config.model_copy(update={"inference_mode": True}))


def test_all_biases_are_trained_once_and_merged():
    model = get_peft_model(
        nn.Sequential(Padded(4, 4, 2), NormAct(4), Head()), LoraConfig(target_modules=["0"], bias="all")
    )
    model.eval()
    biases = {key for key in get_peft_model_state_dict(model) if key.endswith("bias")}
    assert biases == {f"base_model.model.{name}.bias" for name in ("0.base_layer", "1", "2.decoder")}
    move(model)
    x = torch.randn(2, 4, 5, 5)
    y = model(x)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with model.disable_adapter():
        assert not torch.allclose(model(x), y)
    torch.testing.assert_close(model.merge_and_unload()(x), y)


def test_a_bias_that_the_model_has_not_is_refused():
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"], bias="all"))
    with pytest.raises(CheckpointError, match=r"unexpected: 7\.bias"):
        set_peft_model_state_dict(model, {**get_peft_model_state_dict(model), "base_model.model.7.bias": torch.ones(2)})
