"""The wrapper around one layer: order, merging, hazards of its fast path, and what foreign code reads off it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from adapterkit import LoraConfig, get_peft_model
from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.adapter import LayerAdapter, WeightAdapter, wrap
from adapterkit.nn.layer import AdaptedLayer, BiasAdapter
from adapterkit.nn.selection import Routes, Selection
from adapterkit.nn.view import LayerView


class Turn(LayerAdapter):
    """Changes the input: ``y = W R x``."""

    def __init__(self, layer: LayerView) -> None:
        super().__init__(None, layer)
        self.turn = nn.Parameter(torch.eye(layer.in_features) + 0.1 * torch.randn(layer.in_features, layer.in_features))

    def adapt_input(self, x: Tensor) -> Tensor:
        return x @ self.turn.T


class Scale(LayerAdapter):
    """Changes the output, affinely: ``y = s * (W x) + t``."""

    def __init__(self, layer: LayerView) -> None:
        super().__init__(None, layer)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(layer.out_features))
        self.shift = nn.Parameter(0.1 * torch.randn(layer.out_features))

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y * self.scale + self.shift


class Add(WeightAdapter):
    """States the weight: ``W + D``."""

    def __init__(self, layer: LayerView) -> None:
        super().__init__(None, layer)
        self.delta = nn.Parameter(0.1 * torch.randn_like(layer.weight))

    def adapt_weight(self, weight: Tensor) -> Tensor:
        return weight + self.delta.to(weight.dtype)


class Bend(LayerAdapter):
    """Not affine."""

    mergeable = False

    def __init__(self, layer: LayerView) -> None:
        super().__init__(None, layer)
        self.scale = nn.Parameter(torch.ones(layer.out_features))

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y + torch.tanh(y) * self.scale


class Fast(Scale):
    """Has a fused form, which says that it ran."""

    runs = 0

    @classmethod
    def fused(cls, chain, layer: nn.Linear, x: Tensor) -> Tensor | None:
        if len(chain) > 1:
            return None
        cls.runs += 1
        return nn.functional.linear(x, layer.weight, layer.bias) * chain[0].scale + chain[0].shift


def adapted(base: nn.Module, **adapters: type) -> AdaptedLayer:
    torch.manual_seed(0)
    layer = AdaptedLayer(base, Selection(active=tuple(adapters)))
    for name, make in adapters.items():
        layer.adapters[name] = make(layer.view)
    return layer.requires_grad_(False).eval()


@pytest.mark.parametrize("order", list(permutations(("turn", "scale", "add"))))
def test_merging_any_order_is_the_onion(order):
    layer, x = adapted(nn.Linear(5, 4), turn=Turn, scale=Scale, add=Add), torch.randn(3, 5)
    layer.selection.active = order
    expected, weight = layer(x), layer.base_layer.weight.clone()
    layer.merge()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, weight)


def test_the_first_adapter_is_the_inner_one():
    layer, x = adapted(nn.Linear(5, 5), turn=Turn, scale=Scale), torch.randn(3, 5)
    scale, turn = layer.adapters["scale"], layer.adapters["turn"]
    inner_scale = scale.adapt_output(layer.base_layer(turn.adapt_input(x)), turn.adapt_input(x))
    assert torch.equal(wrap([scale, turn], layer.base_layer, x), inner_scale)


def test_a_weight_adapter_needs_nothing_but_its_weight():
    for base, x in (
        (nn.Linear(5, 4), torch.randn(3, 5)),
        (nn.Embedding(6, 4), torch.randint(0, 6, (3, 2))),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), torch.randn(2, 2, 5, 5)),
        (nn.Conv1d(4, 4, 2, stride=2, dilation=2, groups=2), torch.randn(2, 4, 9)),
    ):
        layer = adapted(base, add=Add)
        expected = layer(x)
        layer.merge()
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_what_is_not_affine_cannot_be_merged():
    layer = adapted(nn.Linear(5, 4), add=Add, bend=Bend)
    with pytest.raises(CapabilityError, match="Bend cannot be merged: its change is not affine"):
        layer.merge()
    assert not layer.merged
    layer.merge(["add"])
    assert layer.merged_adapters == ("add",)


def test_a_bias_cannot_be_merged_where_there_is_none():
    layer = adapted(nn.Linear(5, 4, bias=False), scale=Scale)
    with pytest.raises(CapabilityError, match="add a bias, which this Linear has no place for"):
        layer.merge()


def test_a_layer_without_a_bias_stays_without_one():
    layer, x = adapted(nn.Linear(5, 4, bias=False), turn=Turn), torch.randn(3, 5)
    expected = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    assert layer.base_layer.bias is None


def test_a_convolution_needs_a_stated_weight():
    layer = adapted(nn.Conv1d(2, 3, 1), bend=Turn)
    with pytest.raises(CapabilityError, match="merging into a Conv1d needs adapters that define adapt_weight"):
        layer.merge()


def test_merging_states():
    layer, x = adapted(nn.Linear(5, 4), a=Add, b=Scale), torch.randn(3, 5)
    layer.merge(["a"])
    with pytest.raises(StateError, match=r"adapters \['a'\] are merged already"):
        layer.merge(["b"])
    layer.selection.routes = Routes.of(["a", "b", "a"])
    with pytest.raises(StateError, match="while adapters are merged"):
        layer(x)
    layer.selection.routes = None
    layer.unmerge()
    layer.merge(["not here"])
    assert not layer.merged


def test_disabling_is_no_side_effect_on_a_merged_layer():
    layer, x = adapted(nn.Linear(5, 4), a=Add), torch.randn(3, 5)
    base = layer.base_layer(x)
    layer.merge()
    merged = layer(x)
    layer.selection.enabled = False
    assert torch.equal(layer(x), base)
    layer.selection.enabled = True
    assert torch.equal(layer(x), merged)


def test_routing_changes_inputs_and_outputs_by_row():
    layer, x = adapted(nn.Linear(5, 4), a=Turn, b=Scale), torch.randn(4, 2, 5)
    layer.selection.routes = Routes.of(["b", "__base__", "a", "b"])
    routed = layer(x)
    layer.selection.routes = None
    for name, rows in {"a": [2], "b": [0, 3], "none": [1]}.items():
        layer.selection.active = (name,)
        torch.testing.assert_close(routed[rows], layer(x[rows]))


def test_routing_needs_rows_in_dimension_0():
    layer = adapted(nn.Linear(5, 4), a=Turn)
    layer.selection.routes = Routes.of(["a", "__base__"])
    with pytest.raises(StateError, match="adapter_names has 2 names, and a layer's input has 3 rows"):
        layer(torch.randn(3, 5))
    with pytest.raises(StateError, match="adapter_names has 0 names"):
        Routes.of([]).fit(3)


def test_routes_spread_over_beams():
    routes = Routes.of(["a", "__base__", "b"]).fit(6)
    assert {name: index.tolist() for name, index in routes.rows.items()} == {"a": [0, 1], "b": [4, 5]}


class TestFastPath:
    def test_is_taken_for_one_adapter_on_a_plain_linear_layer(self):
        layer, x = adapted(nn.Linear(5, 4), fast=Fast), torch.randn(3, 5)
        Fast.runs = 0
        torch.testing.assert_close(layer(x), wrap([layer.adapters["fast"]], layer.base_layer, x))
        assert Fast.runs == 1

    @pytest.mark.parametrize(
        "case", ["hook", "pre_hook", "instance forward", "subclass", "two adapters", "routed", "parametrised"]
    )
    def test_is_not_taken_where_the_layer_s_own_call_counts(self, case):
        class Loud(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + 1

        layer, x = adapted(Loud(5, 4) if case == "subclass" else nn.Linear(5, 4), fast=Fast), torch.randn(3, 5)
        base = layer.base_layer
        if case == "hook":
            base.register_forward_hook(lambda module, args, y: y + 1)
        elif case == "pre_hook":
            base.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        elif case == "instance forward":  # as accelerate does for devices
            base.forward = lambda x: nn.functional.linear(x, base.weight) + 2
        elif case == "parametrised":
            nn.utils.parametrizations.weight_norm(base)
        elif case == "two adapters":
            layer.adapters["scale"] = Scale(layer.view)
            layer.selection.active = ("fast", "scale")
        elif case == "routed":
            layer.selection.routes = Routes.of(["fast"] * 3)
        Fast.runs = 0
        y = layer(x)
        assert Fast.runs == 0
        torch.testing.assert_close(y, wrap(layer.chain(layer.selection.active), base, x))

    def test_reads_the_weight_when_it_runs(self):
        layer, x = adapted(nn.Linear(5, 4), fast=Fast), torch.randn(3, 5)
        layer(x)
        fresh = nn.Linear(5, 4)
        layer.base_layer.load_state_dict(fresh.state_dict(), assign=True)
        torch.testing.assert_close(layer(x), wrap([layer.adapters["fast"]], fresh, x))


def test_foreign_code_reads_the_layer_it_knows():
    layer = adapted(nn.Linear(5, 4), a=Add)
    assert (layer.in_features, layer.out_features) == (5, 4)
    assert layer.weight is layer.base_layer.weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        layer.no_such_thing


def test_further_arguments_reach_the_layer():
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, by: float = 1.0, *, plus: float = 0.0) -> Tensor:
            return super().forward(x) * by + plus

    layer, x = adapted(Scaled(5, 4), scale=Scale), torch.randn(3, 5)
    torch.testing.assert_close(
        layer(x, 2.0, plus=3.0), layer.adapters["scale"].adapt_output(layer.base_layer(x, 2.0, plus=3.0), x)
    )


class TestBias:
    def test_starts_as_the_layer_s_own_and_is_merged(self):
        for base, x in ((nn.Linear(5, 4), torch.randn(3, 5)), (nn.Conv2d(2, 4, 3), torch.randn(2, 2, 5, 5))):
            layer = AdaptedLayer(base.requires_grad_(False), Selection(active=("a",)))
            layer.biases["a"] = BiasAdapter(layer.view).requires_grad_(False)
            torch.testing.assert_close(layer(x), base(x))
            layer.biases["a"].bias += 1
            torch.testing.assert_close(layer(x), base(x) + 1)
            layer.merge()
            torch.testing.assert_close(base.bias, layer.biases["a"].bias)

    def test_needs_a_bias(self):
        with pytest.raises(CapabilityError, match="Linear has no bias to train"):
            BiasAdapter(LayerView(nn.Linear(3, 3, bias=False)))


def test_threads_share_a_layer_whose_parameters_are_exchanged():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    config = LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)
    model = get_peft_model(nn.ModuleDict({"attention": attention}), config).eval()
    layer, x = model.get_base_model()["attention"], torch.randn(2, 3, 8)

    def call(_: int) -> torch.Tensor:
        with torch.inference_mode():
            return layer(x, x, x, need_weights=False)[0]

    expected, before = call(0), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(call, range(300)))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(y, expected) for y in found)
