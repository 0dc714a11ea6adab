"""``bias`` against PEFT's on modules that compute with their parameters: attention, and ``target_parameters``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from adapterkit.errors import CapabilityError
from tests.parity.helpers import (
    add_noise,
    assert_parity,
    assert_same_start,
    assert_same_tensors,
    gradients,
    peft,
    peft_model,
    quiet,
    run,
    state_of,
)
from tests.parity.layers import seeded


class Attending(nn.Module):
    """Two attentions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.MultiheadAttention(8, 2, batch_first=True)
        self.far = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.no_grad():
            for attention in (self.near, self.far):
                attention.in_proj_bias.normal_()
                attention.out_proj.bias.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.near(x, x, x, need_weights=False)[0]
        x = x + self.far(x, x, x, need_weights=False)[0]
        return self.last(torch.tanh(self.first(x)))


X = torch.linspace(-2, 2, 120).reshape(3, 5, 8).sin()
ATTENTION = {"alone": ["near"], "beside_linear": ["far", "last"]}


def doubled(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """An adapter's tensors with those of every ``out_proj`` doubled that have this name: PEFT 0.21.2 merges the update
    of ``out_proj`` twice in its forward, ``W + 2 s B A``, and derives as if it were once. The in-projection of the same
    layer, and both here, are ``W + s B A``."""
    return {key: 2 * t if f"out_proj.{name}" in key else t for key, t in state.items()}


@pytest.mark.parametrize("mode", ["none", "all", "lora_only"])
@pytest.mark.parametrize("targets", ATTENTION)
def test_attention(mode, targets, tmp_path):
    kwargs = {"r": 2, "bias": mode, "target_modules": ATTENTION[targets]}
    theirs = peft_model(peft.LoraConfig(**kwargs), seeded(Attending)())
    with quiet():
        theirs.save_pretrained(tmp_path / "theirs")
    mine = PeftModel.from_pretrained(seeded(Attending)(), tmp_path / "theirs", is_trainable=True).eval()
    state, their_state = get_peft_model_state_dict(mine), state_of(theirs)
    assert_same_tensors(state, their_state)
    assert_same_start(LoraConfig(**kwargs), seeded(Attending)(), theirs, their_state)
    set_peft_model_state_dict(mine, doubled(their_state, "lora_B"))
    torch.testing.assert_close(run(mine, X), run(theirs, X), atol=1e-5, rtol=1e-4)
    expected = doubled(gradients(theirs, their_state, X), "lora_A")
    torch.testing.assert_close(gradients(mine, state, X), expected, atol=1e-4, rtol=1e-4)
    set_peft_model_state_dict(mine, their_state)
    mine.save_pretrained(tmp_path / "ours")
    with quiet():
        back = peft.PeftModel.from_pretrained(seeded(Attending)(), tmp_path / "ours").eval()
    torch.testing.assert_close(run(back, X), run(theirs, X), atol=1e-5, rtol=1e-4)
    set_peft_model_state_dict(mine, doubled(their_state, "lora_B"))
    merged = theirs.merge_and_unload().state_dict()
    torch.testing.assert_close(dict(mine.merge_and_unload().state_dict()), dict(merged), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["all", "lora_only"])
def test_a_targeted_parameter(mode):
    kwargs = {"r": 2, "bias": mode, "target_modules": [], "target_parameters": ["first.weight"]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(Attending), X)


@pytest.mark.parametrize("mode", ["all", "lora_only"])
def test_every_trained_bias_receives_a_gradient(mode):
    model = get_peft_model(seeded(Attending)(), LoraConfig(r=2, bias=mode, target_modules=["near"]))
    add_noise(model)
    model(X).cos().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len([name for name in trained if name.endswith("bias")]) == {"all": 4, "lora_only": 1}[mode]
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    with model.disable_adapter():
        torch.testing.assert_close(model(X), seeded(Attending)()(X))


def test_beside_another_adapter_on_the_attention(tmp_path):
    """The second adapter trains the bias of an attention that only the first one adapts."""
    model = get_peft_model(seeded(Attending)(), LoraConfig(r=2, target_modules=["near"]), "one")
    model.add_adapter("two", LoraConfig(r=2, bias="all", target_modules=["last"]))
    model.set_adapter("two")
    add_noise(model)
    model.eval().save_pretrained(tmp_path, selected_adapters=["two"])
    alone = PeftModel.from_pretrained(seeded(Attending)(), tmp_path / "two")
    torch.testing.assert_close(alone(X), model(X))
    theirs = peft.PeftModel.from_pretrained(seeded(Attending)(), tmp_path / "two").eval()
    torch.testing.assert_close(theirs(X), model(X))


def test_a_bias_without_a_weight_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix, self.bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x @ self.matrix + self.bias

    model = nn.Sequential(Scaled())
    with pytest.raises(CapabilityError, match=r"bias: '0' has adapted parameters"):
        get_peft_model(model, LoraConfig(r=2, bias="all", target_modules=[], target_parameters=["matrix"]))
