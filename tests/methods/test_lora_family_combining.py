"""Weighted combinations of LoRA adapters that change parameters, rather than layers that are called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.errors import CapabilityError


class Attending(nn.Module):
    """An attention and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return self.last(torch.tanh(self.first(x)))


def base() -> nn.Module:
    torch.manual_seed(0)
    return Attending().eval()


X = torch.linspace(-2, 2, 120).reshape(3, 5, 8).sin()
TARGETS = {
    "attention": {"target_modules": ["attend"]},
    "attention_and_linear": {"target_modules": ["attend", "last"]},
    "parameter": {"target_modules": [], "target_parameters": ["first.weight"]},
    "parameter_and_linear": {"target_modules": ["last"], "target_parameters": ["first.weight"]},
    "biases": {"target_modules": ["attend", "last"], "bias": "all"},
}


def pair(**fields) -> PeftModel:
    model = get_peft_model(base(), LoraConfig(r=2, **fields), "a")
    model.add_adapter("b", LoraConfig(r=2, lora_alpha=5, **fields))
    model.set_requires_grad(["a", "b"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def changes(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """What an adapter changes of every parameter of the base."""
    model.set_adapter(name)
    model.merge_adapter()
    merged = model.get_base_model().state_dict()
    model.unmerge_adapter()
    return {key: merged.get(key, merged.get(_inside(key))) - value for key, value in base().state_dict().items()}


def _inside(key: str) -> str:
    module, _, rest = key.partition(".")
    return f"{module}.base_layer.{rest}"


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("kind", "rank"), [("cat", None), ("svd", 4)])
def test_the_combination_is_the_weighted_sum(targets, kind, rank):
    model = pair(**TARGETS[targets])
    model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "both", kind, svd_rank=rank)
    a, b, both = (changes(model, name) for name in ("a", "b", "both"))
    assert any(change.any() for change in both.values())
    for key, change in both.items():
        torch.testing.assert_close(change, 0.7 * a[key] - 0.4 * b[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("targets", TARGETS)
def test_one_adapter_at_weight_one_is_given_back_exactly(targets):
    model = pair(**TARGETS[targets])
    model.set_adapter("a")
    expected = model(X)
    model.add_weighted_adapter(["a"], [1.0], "same")
    model.set_adapter("same")
    assert torch.equal(model(X), expected)


def test_stacks_are_refused_and_nothing_is_left_behind():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x):
            return torch.einsum("...i,eoi->...o", x, self.stack)

    model = get_peft_model(
        nn.Sequential(Experts()), LoraConfig(r=2, target_modules=[], target_parameters=["stack"]), "a"
    )
    model.add_adapter("b", LoraConfig(r=2, target_modules=[], target_parameters=["stack"]))
    with pytest.raises(CapabilityError, match="stacked parameters cannot be combined"):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", "cat")
    assert sorted(model.peft_config) == ["a", "b"]
