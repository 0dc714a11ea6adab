"""What a call brings, routes and inputs, is there in its own forward and backward, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adapterkit import LoraConfig, get_peft_model
from adapterkit.errors import StateError


class Net(nn.Module):
    """Two layers, each run again in backward."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.one, self.two, self.use_reentrant = nn.Linear(6, 6), nn.Linear(6, 6), use_reentrant

    def forward(self, x, position_ids=None):
        for layer in (self.one, self.two):
            x = torch.tanh(checkpoint(layer, x, use_reentrant=self.use_reentrant))
        return x


def tuned(use_reentrant: bool = False, **fields):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["one", "two"], init_lora_weights=False, **fields)
    model = get_peft_model(Net(use_reentrant), config, "a")
    model.add_adapter("b", config)
    model.set_requires_grad(["a", "b"])
    return model


def grads(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def x(rows: int = 2):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("wants_grad", [True, False])
def test_the_next_call_of_the_base_model_has_none(wants_grad):
    model = tuned()
    with torch.set_grad_enabled(wants_grad):
        expected = model.get_base_model()(x())
        model(x(), adapter_names=["b", "__base__"])
        assert torch.equal(model.get_base_model()(x()), expected)
        model.get_base_model()(x(3))  # as many rows as it likes


def test_a_call_that_fails_leaves_none():
    model = tuned()
    expected = model.get_base_model()(x())
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5), adapter_names=["b", "a"])
    assert torch.equal(model.get_base_model()(x()), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_calls_between_forward_and_backward_change_nothing(use_reentrant):
    model = tuned(use_reentrant)
    model(x(), adapter_names=["b", "a"]).sum().backward()
    expected = grads(model)
    loss = model(x(), adapter_names=["b", "a"]).sum()
    with torch.no_grad():
        model(x())
        model(x(3), adapter_names=["a", "a", "b"])
        model.get_base_model()(x())
    loss.backward()
    torch.testing.assert_close(grads(model), expected)
    model(x()).sum().backward()
    assert set(grads(model)) != set(expected)  # the backward of a call without rows has none


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("second", [["a", "b"], None])
def test_two_forwards_before_their_backward_are_refused(use_reentrant, second):
    model = tuned(use_reentrant)
    loss = model(x(), adapter_names=["b", "a"]).sum() + model(x(), adapter_names=second).sum()
    with pytest.raises(StateError, match="call backward after each"):
        loss.backward()
    del loss
    model.zero_grad()
    model(x(), adapter_names=second).sum().backward()  # what is gone is in nobody's way
    assert grads(model)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_forwards_of_the_same_rows_are_not(use_reentrant):
    model = tuned(use_reentrant)
    (2 * model(x(), adapter_names=["b", "a"]).sum()).backward()
    expected = grads(model)
    (model(x(), adapter_names=["b", "a"]).sum() + model(x(), adapter_names=["b", "a"]).sum()).backward()
    torch.testing.assert_close(grads(model), expected)


def test_rows_seen_in_inference_mode_can_be_trained():
    model = tuned(lora_dropout=0.1)
    with torch.inference_mode():
        model.eval()(x(), adapter_names=["a", "b"])
    model.train()(x(), adapter_names=["a", "b"]).sum().backward()
    assert grads(model)


def test_inputs_that_all_rows_share():
    model = tuned()
    expected = model(x(), adapter_names=["a", "b"])
    given = model(position_ids=torch.arange(5)[None], x=x(), adapter_names=["a", "b"])
    assert torch.equal(given, expected)
    with pytest.raises(StateError, match="3 names for a batch of 1 rows"):
        model(position_ids=torch.arange(5)[None], x=x(), adapter_names=["a", "b", "a"])
