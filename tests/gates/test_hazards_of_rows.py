"""The same of rows of many adapters: every test compares each row with the onion of its adapter alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.nn.adapter import wrap
from adapterkit.nn.kept import Sources
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
    "another adapter": lambda model: layer_of(model).adapters.update({"a": layer_of(model).adapters["b"]}),
    "trained": lambda model: model.set_requires_grad("a", True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 12)], ids=str)
def test_rows_by_adapter(change, shape):
    model, x = wrapped(), torch.randn(shape)
    for _ in range(4):  # from the third on, what is kept is looked at before the forward
        by_row(model, x)
    with torch.no_grad():
        CHANGES[change](model)
    by_row(model, x)
    by_row(model, x, ROWS[::-1])
    check(model, x)


def test_rows_of_a_wider_type_are_not_computed_in_a_narrower_one():
    model, x = wrapped().double(), torch.randn(5, 12, dtype=torch.float64)
    layer = layer_of(model)
    layer.base_layer.register_forward_pre_hook(lambda _, given: (given[0].double(),))
    with torch.no_grad():
        model(x.float(), adapter_names=ROWS)
        found = model(x, adapter_names=ROWS)
        layer.view.kept_rows = None
        torch.testing.assert_close(found, model(x, adapter_names=ROWS), rtol=1e-12, atol=1e-12)


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


def deep() -> PeftModel:
    """Three layers, whose forward is looked at in one go."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    config = LoraConfig(r=2, target_modules=["0", "1", "2"], init_lora_weights=False)
    model = get_peft_model(base, config, "a")
    model.add_adapter("b", config)
    return model.requires_grad_(False).eval()


def layers_of(model) -> list[nn.Module]:
    return [*model.base_model.layers.values()]


def settled(model, x):
    """The output, once all layers have found what they keep to be the same."""
    for _ in range(3):
        y = model(x, adapter_names=["a", "b"])
    return y


def expected(model, x):
    """Each row through the onions of its adapter alone."""
    rows = []
    for row, name in zip(x, ("a", "b"), strict=True):
        for layer in layers_of(model):
            row = wrap(layer.chain((name,)), layer.base_layer, row)
        rows.append(row)
    return torch.stack(rows)


def test_a_forward_looks_once_for_all_layers(monkeypatch):
    model, x, looked = deep(), torch.randn(2, 6), []
    settled(model, x)
    look = Sources.are_same
    monkeypatch.setattr(Sources, "are_same", lambda self: looked.append(self) or look(self))
    for _ in range(2):
        model(x, adapter_names=["a", "b"])
    assert len(looked) == 2
    assert looked[0] is looked[1]


def test_the_other_layers_are_looked_at_once_when_one_is_trained(monkeypatch):
    model, x, looked = deep(), torch.randn(2, 6), []
    settled(model, x)
    layers_of(model)[1].adapters["b"].requires_grad_(True)
    settled(model, x)
    look = Sources.are_same
    monkeypatch.setattr(Sources, "are_same", lambda self: looked.append(self) or look(self))
    torch.testing.assert_close(model(x, adapter_names=["a", "b"]), expected(model, x))
    assert len(looked) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_change_in_any_layer_is_seen_by_the_look_at_all(place):
    model, x = deep(), torch.randn(2, 6)
    for _ in range(2):
        torch.testing.assert_close(settled(model, x), expected(model, x))
        with torch.no_grad():
            layers_of(model)[place].adapters["b"].lora_A.weight.mul_(-3)
        torch.testing.assert_close(model(x, adapter_names=["a", "b"]), expected(model, x))


def test_a_layer_called_on_its_own_looks_itself():
    model, x = deep(), torch.randn(2, 6)
    settled(model, x)
    layer = layers_of(model)[1]
    with torch.no_grad():
        layer.adapters["b"].lora_A.weight.mul_(-3)
    layer.selection.routes = layer.selection.last_routes
    torch.testing.assert_close(layer(x)[1], wrap(layer.chain(("b",)), layer.base_layer, x[1]))


def test_a_forward_that_fails_leaves_nothing_to_be_trusted():
    model, x = deep(), torch.randn(2, 6)
    settled(model, x)
    with pytest.raises(RuntimeError), layers_of(model)[1].base_layer.register_forward_pre_hook(fail):
        model(x, adapter_names=["a", "b"])
    with torch.no_grad():
        layers_of(model)[2].adapters["b"].lora_A.weight.mul_(-3)
    last = layers_of(model)[2]
    last.selection.routes = last.selection.last_routes
    torch.testing.assert_close(last(x)[1], wrap(last.chain(("b",)), last.base_layer, x[1]))


def fail(module, args):
    raise RuntimeError("no")


@pytest.mark.parametrize("trained_by_rows", [False, True])
def test_an_optimizer_that_writes_unseen_on_the_other_way(trained_by_rows):
    """What is kept for rows is given up when an adapter is trained alone, and the other way round."""
    model, x = wrapped(), torch.randn(5, 12)
    for _ in range(2):
        check(model, x)
        by_row(model, x)
    model.set_requires_grad("a", True)
    model.train()(x, adapter_names=ROWS if trained_by_rows else None).sum().backward()
    factor(model).data.add_(1)  # as kernels of their own write, past PyTorch's counting
    model.eval().set_requires_grad("a", False)
    check(model, x)
    by_row(model, x)
