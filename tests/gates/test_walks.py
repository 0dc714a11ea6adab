"""Who goes through the model's modules, and how often: once to inject, and never afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapterkit import LoraConfig, PeftModel, get_peft_model
from tests.gates.counting import Visits, calls, steps


class Pair(nn.Module):
    """Two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.value = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(self.query(x))


class Deep(nn.Module):
    """Modules inside modules. Its own forward goes through none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Pair(), Pair()
        self.head = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def config(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False, **fields})


def wrapped(names: int = 3) -> PeftModel:
    model = get_peft_model(Deep(), config(), "a0")
    for number in range(1, names):
        model.add_adapter(f"a{number}", config())
    return model.eval()


def base_of(model: PeftModel) -> Visits:
    """Watches the modules of the base, adapted layers among them, and not the adapters' own."""
    return Visits(model.base_model.model)


def outside_adapters(found: dict[str, int]) -> dict[str, int]:
    """Without the parts of one layer's adapters, which saving and switching are about."""
    return {name: count for name, count in found.items() if ".adapters" not in name}


def test_injection_goes_through_every_module_once():
    model = Deep()
    visits = Visits(model)
    with visits.of() as found:
        get_peft_model(model, config())
    assert set(found.values()) == {1}, found


def test_a_further_adapter_is_no_walk():
    model = wrapped()
    visits = base_of(model)
    with visits.of() as found:
        model.add_adapter("more", config())
    assert not outside_adapters(found)


def _load(model, root):
    model.load_adapter(root / "a1", "loaded")


def _save(model, root):
    model.save_pretrained(root / "out", selected_adapters=["a1"])


def _switch(model, root):
    model.set_adapter("a1")


def _freeze(model, root):
    model.set_requires_grad("a2", False)


def _disable(model, root):
    with model.disable_adapter():
        model(torch.randn(2, 4))


def _route(model, root):
    model(torch.randn(3, 4), adapter_names=["a0", "__base__", "a2"])


def _combine(model, root):
    model.add_weighted_adapter(["a0", "a1"], [0.5, 0.5], "sum", combination_type="linear")


@pytest.mark.parametrize("operation", [_load, _save, _switch, _freeze, _disable, _route, _combine])
def test_nothing_else_walks(operation, tmp_path):
    model = wrapped()
    model.save_pretrained(tmp_path)
    visits = base_of(model)
    with visits.of() as found:
        operation(model, tmp_path)
    assert not outside_adapters(found)


def _describe(model, root):
    model.get_layer_status()


def _merge(model, root):
    model.merge_adapter()
    model.unmerge_adapter()


@pytest.mark.parametrize("operation", [_load, _save, _switch, _freeze, _disable, _route, _combine, _describe, _merge])
def test_no_layer_is_given_what_it_does_not_use(operation, tmp_path):
    """A layer with adapters and nothing else takes the shortest way through its forward."""
    model = wrapped()
    model.save_pretrained(tmp_path)
    operation(model, tmp_path)
    assert {tuple(layer._modules) for layer in model.base_model.layers.values()} == {("base_layer", "adapters")}


@pytest.mark.parametrize("operation", [_load, _save, _switch, _freeze, _disable, _route, _combine])
def test_nothing_goes_through_the_adapters_that_a_layer_has(operation, tmp_path):
    model = wrapped()
    model.save_pretrained(tmp_path)
    visits = base_of(model)
    with visits.of() as found:
        operation(model, tmp_path)
    assert not [name for name in found if name.endswith(".adapters")]


def test_a_walk_is_noticed():
    model = wrapped()
    visits = base_of(model)
    with visits.of() as found:
        list(model.base_model.model.named_modules())
    assert outside_adapters(found)


OPERATIONS = {
    "add": lambda model, name, root: model.add_adapter(name, config()),
    "load": lambda model, name, root: model.load_adapter(root / "a0", name),
    "switch": lambda model, name, root: model.set_adapter("a1"),
    "disable": lambda model, name, root: _disable(model, root),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_nth_adapter_is_as_much_work_as_the_second(operation, tmp_path):
    model, work = wrapped(1), OPERATIONS[operation]
    model.save_pretrained(tmp_path)
    (tmp_path / "a1").mkdir(exist_ok=True)
    counts: dict[Any, list[int]] = {calls: [], steps: []}
    for number in range(1, 16):
        if operation in ("switch", "disable"):
            model.add_adapter(f"a{number}", config())
            model.set_adapter("a0")
        count = calls if number % 2 else steps
        counts[count].append(count(lambda name=f"a{number}": work(model, name, tmp_path)))
    assert max(counts[calls][1:]) <= 1.02 * min(counts[calls][1:]), counts
    assert max(counts[steps][1:]) <= 1.05 * min(counts[steps][1:]), counts  # names are looked up among more


def test_work_grows_in_line_with_the_layers():
    def work(layers: int) -> int:
        model = nn.ModuleList(Pair() for _ in range(layers))
        return steps(lambda: get_peft_model(model, config()))

    few, more, many = work(10), work(20), work(40)
    assert many - more <= 2.05 * (more - few), (few, more, many)
