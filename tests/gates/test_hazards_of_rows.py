"""The same of rows of many adapters: every test compares each row with the onion of its adapter alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig
from adapterkit.nn.adapter import wrap
from tests.gates.test_hazards import check, factor, layer_of, wrapped

ROWS = ["a", "c", "__base__", "b", "a"]
MANY = [f"m{number}" for number in range(40)]


def by_row(model, x, names=tuple(ROWS)) -> torch.Tensor:
    """Each row's output, which is that of its adapter alone."""
    layer = layer_of(model)
    with torch.no_grad():
        y = model(x, adapter_names=list(names))
        for row, name in enumerate(names):
            chain = layer.chain(() if name == "__base__" else (name,))
            torch.testing.assert_close(y[row], wrap(chain, layer.base_layer, x[row]), atol=1e-4, rtol=1e-4)
    return y


CHANGES = {
    "another order": lambda model: None,
    "written to": lambda model: factor(model).add_(1),
    "other memory": lambda model: setattr(factor(model), "data", torch.randn(10, 2)),
    "another factor": lambda model: setattr(
        layer_of(model).adapters["a"].lora_B, "weight", nn.Parameter(torch.randn(10, 2))
    ),
    "another scale": lambda model: setattr(layer_of(model).adapters["a"], "scaling", 7.0),
    "trained": lambda model: model.set_requires_grad("a", True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 12)], ids=str)
def test_rows_by_adapter(change, shape):
    model, x = wrapped(), torch.randn(shape)
    for _ in range(2):
        by_row(model, x)
    with torch.no_grad():
        CHANGES[change](model)
    by_row(model, x)
    by_row(model, x, ROWS[::-1])
    check(model, x)


def test_rows_of_so_many_adapters_that_each_is_given_its_factors():
    model = wrapped()
    for number, name in enumerate(MANY):
        config = LoraConfig(r=1 + number % 3, target_modules=["layer"], init_lora_weights=False)
        model.add_adapter(name, config)
    x, names = torch.randn(42, 12), ["__base__", *MANY, "a"]
    by_row(model, x, names)
    with torch.no_grad():
        factor(model).add_(1)
    by_row(model, x, names)


def test_rows_of_adapters_that_are_trained():
    model, x = wrapped(), torch.randn(5, 12)
    model.set_requires_grad(["a", "b"], True)
    by_row(model, x)
    model(x, adapter_names=ROWS).square().sum().backward()
    got = {name: factor(model, name).grad.clone() for name in ("a", "b")}
    for name, rows in {"a": [0, 4], "b": [3]}.items():
        model.zero_grad()
        model.base_model.activate([name])
        model(x[rows]).square().sum().backward()
        torch.testing.assert_close(factor(model, name).grad, got[name])


def test_rows_of_adapters_that_read_the_weight():
    model, x = wrapped(), torch.randn(3, 12)
    config = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False, use_dora=True)
    for name in ("d", "e"):
        model.add_adapter(name, config)
        factor(model, name).data.normal_()
    model.requires_grad_(False).eval()
    for change in (lambda weight: weight.mul_(2), lambda weight: setattr(weight, "data", torch.randn(10, 12))):
        for _ in range(2):
            by_row(model, x, ("d", "b", "e"))
        with torch.no_grad():
            change(layer_of(model).base_layer.weight)
        by_row(model, x, ("d", "b", "e"))


def test_rows_of_bf16():
    model, x = wrapped(dtype=torch.bfloat16), torch.randn(5, 12, dtype=torch.bfloat16)
    y = model(x, adapter_names=ROWS)
    model.base_model.activate(["b"])
    torch.testing.assert_close(y[3], model(x)[3], atol=0.05, rtol=0.05)
