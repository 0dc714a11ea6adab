"""Of an adapter that is switched, every parameter is, whatever has become of it since the last time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from adapterkit import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights


class Net(nn.Module):
    """Two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.value(self.query(x))


def config(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["query", "value"], **fields})


def two() -> PeftModel:
    model = get_peft_model(Net(), config(use_dora=True), "a")
    model.add_adapter("b", config(use_dora=True))
    model.set_adapter("b")
    model.set_adapter("a")
    return model


def flags(model: PeftModel, name: str) -> set[bool]:
    """What the parameters of one adapter say, all together."""
    return {p.requires_grad for n, p in model.named_parameters() if f".adapters.{name}." in n}


def exchange(model: PeftModel) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".adapters.a." in name


def cast(model: PeftModel) -> None:
    model.to(torch.float64)


def reparametrize(model: PeftModel) -> None:
    for name in ("a", "b"):
        factor = model.base_model.layers["query"].adapters[name].lora_A
        parametrize.register_parametrization(factor, "weight", nn.Identity())


def make_again(model: PeftModel) -> None:
    model.delete_adapter("b")
    model.add_adapter("b", config(r=3))


def nothing(model: PeftModel) -> None:
    pass


@pytest.mark.parametrize("change", [nothing, exchange, cast, reparametrize, make_again])
def test_every_parameter_is_switched(change):
    model = two()
    change(model)
    assert (flags(model, "a"), flags(model, "b")) == ({True}, {False})
    model.set_adapter("b")
    assert (flags(model, "a"), flags(model, "b")) == ({False}, {True})
    model.set_adapter(["a", "b"])
    assert (flags(model, "a"), flags(model, "b")) == ({True}, {True})
    model.set_adapter("a", inference_mode=True)
    assert (flags(model, "a"), flags(model, "b")) == ({False}, {False})


def test_adapters_that_were_made_anew_are_switched():
    model = get_peft_model(Net(), config(init_lora_weights="eva", target_modules=["query"]), "a")
    model.add_adapter("b", config())
    model.set_adapter("a")
    batches = [torch.randn(16, 6) for _ in range(4)]
    initialize_lora_eva_weights(model, batches, None, lambda m, x: m(x), lambda x, _: x, adapter_name="a")
    model.set_adapter("b")
    assert (flags(model, "a"), flags(model, "b")) == ({False}, {True})
    model.set_adapter("a")
    assert (flags(model, "a"), flags(model, "b")) == ({True}, {False})
