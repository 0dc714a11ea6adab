"""A module that is trained whole: the active adapter's copy runs, by row too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adapterkit import LoraConfig, get_peft_model
from adapterkit.errors import CapabilityError
from adapterkit.nn.copied import CopiedLayer, trainable_copy
from adapterkit.nn.selection import Routes, Selection


def copied() -> CopiedLayer:
    torch.manual_seed(0)
    layer = CopiedLayer(nn.Linear(4, 3).requires_grad_(False), Selection(active=("a",)))
    for name in ("a", "b"):
        layer.modules_to_save[name] = trainable_copy(layer.original_module)
        with torch.no_grad():
            layer.modules_to_save[name].weight += torch.randn(3, 4)
    return layer


def test_runs_the_copy_of_the_last_active_adapter_that_has_one():
    layer, x = copied(), torch.randn(2, 4)
    for active, name in {("a",): "a", ("a", "b"): "b", ("b", "other"): "b", ("other",): None, (): None}.items():
        layer.selection.active = active
        expected = layer.original_module if name is None else layer.modules_to_save[name]
        assert torch.equal(layer(x), expected(x))
    layer.selection.active, layer.selection.enabled = ("a",), False
    assert torch.equal(layer(x), layer.original_module(x))


def test_copies_train_and_the_original_does_not():
    layer = copied()
    assert not any(p.requires_grad for p in layer.original_module.parameters())
    assert all(p.requires_grad for p in layer.modules_to_save.parameters())


def test_rows_have_their_own_copy():
    layer, x = copied(), torch.randn(4, 4)
    layer.selection.routes = Routes.of(["b", "__base__", "a", "b"])
    y = layer(x)
    for name, rows in {"a": [2], "b": [0, 3]}.items():
        torch.testing.assert_close(y[rows], layer.modules_to_save[name](x[rows]))
    torch.testing.assert_close(y[1], layer.original_module(x[1]))


class Rerun(nn.Module):
    """Runs its head again in backward."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.again = nn.Linear(4, 4), nn.Linear(4, 3), again

    def forward(self, x):
        h = self.body(x).tanh()
        return checkpoint(self.head, h, use_reentrant=False) if self.again else self.head(h)


def test_a_copy_that_runs_again_in_backward_has_the_rows_it_had():
    gradients = []
    for again in (False, True):
        config = LoraConfig(r=2, target_modules=["body"], modules_to_save=["head"])
        model = get_peft_model(Rerun(again), config, "a")
        model.add_adapter("b", config)
        model.set_requires_grad(["a", "b"])
        x = torch.linspace(-1, 1, 16).reshape(4, 4)
        model(x, adapter_names=["a", "b", "__base__", "b"]).square().sum().backward()
        copies = model.base_model.copies["head"].modules_to_save
        gradients.append([copies[name].weight.grad for name in ("a", "b")])
    torch.testing.assert_close(*gradients)
    assert not torch.allclose(*gradients[0])


def test_rows_that_cannot_be_told_apart_are_an_error():
    layer = copied()
    layer.selection.routes = Routes.of(["a", "b"])
    with pytest.raises(CapabilityError, match="needs a positional input to Linear"):
        layer(input=torch.randn(2, 4))
    layer.original_module.forward = lambda x: (x, x)
    with pytest.raises(CapabilityError, match="needs a tensor from Linear"):
        layer(torch.randn(2, 4))


def test_foreign_code_reads_the_copy():
    layer = copied()
    assert layer.weight is layer.modules_to_save["a"].weight
    layer.selection.enabled = False
    assert layer.weight is layer.original_module.weight
