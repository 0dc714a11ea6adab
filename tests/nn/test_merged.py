"""Merging by factors: rounding, and who may be written to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from adapterkit import LoHaConfig, LoraConfig, get_peft_model
from adapterkit.nn import merged
from adapterkit.nn.forms import LowRank
from adapterkit.nn.merging import add_low_rank, is_held_alone


class Net(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def wrapped(net: nn.Module | None = None, **fields):
    torch.manual_seed(0)
    targets = [str(number) for number in range(3)]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, **fields)
    return get_peft_model(Net() if net is None else net, config).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [5, 700])
def test_half_types_are_rounded_once(dtype, rows):
    torch.manual_seed(0)
    weight, change = torch.randn(rows, 400).to(dtype), LowRank(torch.randn(rows, 3), torch.randn(3, 400), 1.5)
    out = torch.empty_like(weight)
    error = add_low_rank(weight, change, out)
    exact = weight.float() + 1.5 * change.outer @ change.inner
    assert (out == exact.to(dtype)).float().mean() > 0.99  # the order of summation decides ties
    assert error == pytest.approx(float((out.float() - exact).abs().max()), rel=1e-2)


def test_float64_keeps_its_type():
    weight, change = torch.randn(4, 5).double(), LowRank(torch.randn(4, 2), torch.randn(2, 5), 0.3)
    out = torch.empty_like(weight)
    assert add_low_rank(weight, change, out) == 0
    torch.testing.assert_close(out, weight + 0.3 * (change.outer.double() @ change.inner.double()))


def test_a_stated_weight_is_rounded_once():
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, dtype=torch.bfloat16)
    config = LoHaConfig(r=8, target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(layer), config, "a")
    model.add_adapter("b", config)
    weight, adapters = layer.weight.float(), model.base_model.layers["0"].adapters
    expected = adapters["b"].adapt_weight(adapters["a"].adapt_weight(weight)).detach()
    model.merge_adapter(["a", "b"])
    assert torch.equal(layer.weight, expected.bfloat16())


HOLDERS = {
    "a variable": lambda layer: layer.weight,
    "an alias": lambda layer: layer.weight.detach(),
    "a view": lambda layer: layer.weight.data[:1],
    "a state dict": lambda layer: layer.state_dict(),
    "a graph": lambda layer: layer(torch.ones(1, 6, requires_grad=True)),
    "a tied layer": lambda layer: [setattr(other := nn.Linear(6, 6), "weight", layer.weight), other],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_somebody_else_holds_keeps_its_values(holder):
    model = wrapped()
    layer = model.base_model.model.layers[0].base_layer
    assert is_held_alone(layer)
    held = HOLDERS[holder](layer)
    assert not is_held_alone(layer)
    del held
    assert is_held_alone(layer)


def test_memory_of_others_is_not_written_to():
    array = torch.randn(6, 6).numpy()
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.from_numpy(array))
    assert not is_held_alone(layer)


def test_merging_for_good_writes_to_the_weights_that_are_its_own():
    model, x = wrapped(), torch.randn(2, 6)
    expected = model(x).detach()
    base = [layer.base_layer for layer in model.base_model.model.layers]
    places = [layer.weight.data_ptr() for layer in base]
    held = base[1].weight.detach()
    before = held.clone()
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
    assert [layer.weight.data_ptr() == place for layer, place in zip(base, places, strict=True)] == [True, False, True]
    assert torch.equal(held, before)


def test_nothing_is_changed_by_a_failure_however_far_it_came():
    model = wrapped()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.base_model.model.layers[2].adapters["default"].awaits_data = "eva"
    with pytest.raises(Exception, match="eva"):
        model.merge_and_unload()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model.base_model.merged_adapters


def test_interrupted_it_computes_the_same(monkeypatch):
    model, x = wrapped(), torch.randn(2, 6)
    expected = model(x).detach()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(model.base_model.model.layers[1], "merge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.merge_and_unload()
    assert model.base_model.model.layers[0].merged
    torch.testing.assert_close(model(x), expected)


@pytest.fixture
def heard() -> Iterator[Any]:
    """What a Ctrl-C does in a program that a shell has not started in the background, where it does nothing."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_ctrl_c_waits_for_the_layer_that_is_written_to(monkeypatch, heard):
    model, x = wrapped(), torch.randn(2, 6)
    expected = model(x).detach()

    def add(*args, **kwargs):
        error = add_low_rank(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return error

    monkeypatch.setattr(merged, "add_low_rank", add)
    with pytest.raises(KeyboardInterrupt):
        model.merge_and_unload()
    assert [layer.merged for layer in model.base_model.model.layers] == [True, False, False]
    torch.testing.assert_close(model(x), expected)
    assert signal.getsignal(signal.SIGINT) is heard


def test_several_adapters_and_transposed_layers():
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Conv1D(5, 7)

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)
    model = get_peft_model(Net(), config, "a")
    model.add_adapter("b", config.model_copy(update={"lora_alpha": 5}))
    model.base_model.activate(["a", "b"])
    x = torch.randn(3, 7)
    expected = model.eval()(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
