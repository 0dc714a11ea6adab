"""Laws of an adapter on one layer: where it starts, what trains, merging, disabling, rows, mixing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError, StateError
from adapterkit.mixed import PeftMixedModel
from adapterkit.model import PeftModel
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.view import kind_of
from adapterkit.registry import methods
from adapterkit.testing.case import ROWS, AdapterCase, adapted_layers, frozen_state, same, train, trained_state
from adapterkit.testing.toys import GROUPED, LAYERS, Toy


class LayerLaws(AdapterCase):
    """What holds for one adapter on one layer."""

    def test_starts_as_the_base_layer(self, layer: nn.Module) -> None:
        x, model = self.inputs(layer), self.adapted(layer, moved=False)
        expected = self.base(layer)(x)
        if self.starts_as_base:
            self.close(model(x), expected)
        else:
            assert not torch.allclose(model(x), expected, atol=self.tolerance), "it does start as the base layer"

    def test_only_its_own_tensors_train(self, layer: nn.Module) -> None:
        model = self.adapted(layer, moved=False)
        own = {id(p) for _, part in model.base_model.parts("a") for p in part.parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} <= own
        frozen, before = frozen_state(model), trained_state(model)
        assert before, "nothing is trained"
        reached = {n for gradients in train(model, self.inputs(layer)) for n, g in gradients.items() if g.any()}
        assert reached == before.keys(), f"no gradient reaches {sorted(before.keys() - reached)}"
        after = trained_state(model)
        assert not [name for name in before if torch.equal(before[name], after[name])]
        assert same(frozen_state(model), frozen)

    def test_changes_the_output_once_moved(self, layer: nn.Module) -> None:
        x = self.inputs(layer)
        assert not torch.allclose(self.adapted(layer)(x), self.base(layer)(x), atol=1e-3)

    def test_leaves_its_input_alone(self, sample: nn.Module) -> None:
        x, model = self.inputs(sample), self.adapted(sample)
        before = x.clone()
        model(x).sum().backward()
        assert torch.equal(x, before)

    def test_gives_what_it_is_given(self, layer: nn.Module) -> None:
        model, x = self.adapted(layer), self.inputs(layer)
        for adapted in adapted_layers(model):
            y, view = adapted.base_layer(x), adapted.view
            for adapter in adapted.chain(("a",)):
                given = {"adapt_input": (x, adapter.adapt_input(x)), "adapt_output": (y, adapter.adapt_output(y, x))}
                if adapter.states_weight:
                    given["adapt_weight"] = (view.weight, adapter.adapt_weight(view.weight))
                for verb, (before, after) in given.items():
                    assert isinstance(after, Tensor), f"{verb} gives no tensor, but {type(after).__name__}"
                    shapes = f"{verb} gives {tuple(after.shape)} for {tuple(before.shape)}"
                    assert after.shape == before.shape, shapes
                    assert after.dtype == before.dtype, f"{verb} gives {after.dtype} for {before.dtype}"

    def test_hooks_on_the_base_layer_run(self, sample: nn.Module) -> None:
        model, seen = self.adapted(sample), []
        x = self.inputs(sample)
        expected = model(x)
        for module in base_layers(model):
            module.register_forward_hook(lambda *_: seen.append(1))
        self.close(model(x), expected)
        assert len(seen) == 2

    def test_fast_path_is_the_onion(self, layer: nn.Module) -> None:
        model = self.adapted(layer)
        for adapted in adapted_layers(model):
            x = self.inputs(layer)
            chain = adapted.chain(("a",))
            parameters = [p for p in adapted.adapters.parameters() if p.requires_grad]
            results = [adapted(x), by_hand(chain, adapted.base_layer, x)]
            self.close(*results)
            self.close(*(torch.autograd.grad(y.cos().sum(), parameters, allow_unused=True) for y in results))

    def test_layers_that_are_listened_to_are_the_onion(self, layer: nn.Module) -> None:
        model, given = self.adapted(layer), []
        for adapted in adapted_layers(model):
            x = self.inputs(layer)
            adapted.base_layer.register_forward_hook(lambda _, __, y: given.append((y, y.detach().clone())))
            parameters = [p for p in adapted.adapters.parameters() if p.requires_grad]
            results = [adapted(x), by_hand(adapted.chain(("a",)), adapted.base_layer, x)]
            self.close(*results)
            self.close(*(torch.autograd.grad(y.cos().sum(), parameters, allow_unused=True) for y in results))
            with torch.no_grad():
                for _ in range(2):
                    self.close(adapted(x), results[1])
        with torch.no_grad():
            model(self.inputs(layer), adapter_names=["a", "__base__", "a", "a", "__base__"])
        assert given
        assert all(torch.equal(y, before) for y, before in given), "what the layer gave was written to"

    def test_two_of_a_method_are_the_onion(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample, "a", "b"), self.inputs(sample)
        for adapted in adapted_layers(model):
            expected = by_hand(adapted.chain(("a", "b")), adapted.base_layer, x)
            model.base_model.activate(("a", "b"))
            self.close(adapted(x), expected)
            adapted.base_layer.register_forward_hook(lambda *_: None)
            self.close(adapted(x), expected)

    def test_low_rank_change_is_the_onion(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample), self.inputs(sample)
        for adapted in adapted_layers(model):
            for adapter in adapted.chain(("a",)):
                change = adapter.low_rank()
                if change is not None:
                    y = adapted.base_layer(x)
                    self.close(y + x @ change.inner.T @ change.outer.T * change.scaling, adapter.adapt_output(y, x))
                    assert torch.equal(adapter.adapt_input(x), x)

    def test_grouped_convolutions_work_or_are_refused(self) -> None:
        if "conv" not in self.config.adapter_class().kinds:
            with pytest.raises(CapabilityError):
                self.adapted(GROUPED())
            return
        layer = GROUPED()
        try:
            model = self.adapted(layer)
        except CapabilityError:
            return
        x = self.inputs(layer)
        before = model(x)
        try:
            model.merge_adapter()
        except CapabilityError:
            assert torch.equal(model(x), before)
        else:
            self.close(model(x), before)

    def test_other_kinds_of_layer_are_refused(self) -> None:
        kinds = self.config.adapter_class().kinds
        others = [make() for kind, named in LAYERS.items() if not {kind, "any"} & set(kinds) for make in named.values()]
        for layer in others:
            if kind_of(layer) in kinds:
                continue
            toy = Toy(layer)
            modules = list(toy.modules())
            with pytest.raises(CapabilityError, match="target"):
                PeftModel(toy, self.targeting("target"))
            assert list(toy.modules()) == modules

    # -- merging and disabling ----------------------------------------------------------------------------------------

    def test_merging_changes_nothing(self, layer: nn.Module) -> None:
        model, x = self.adapted(layer), self.inputs(layer)
        expected, frozen = model(x), frozen_state(model)
        if not self.merges(model):
            with pytest.raises(CapabilityError):
                model.merge_adapter()
        else:
            model.merge_adapter()
            assert not same(frozen_state(model), frozen)
            self.close(model(x), expected)
            model.unmerge_adapter()
        assert same(frozen_state(model), frozen)
        assert torch.equal(model(x), expected)

    def test_merging_and_unloading_leaves_a_plain_model(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample), self.inputs(sample)
        expected = model(x)
        if not self.merges(model):
            with pytest.raises(CapabilityError):
                model.merge_and_unload()
            return
        plain = model.merge_and_unload()
        assert [type(m) for m in plain.modules()] == [type(m) for m in self.base(sample).modules()]
        self.close(plain(x), expected)

    def test_unloading_gives_the_base_back(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample), self.inputs(sample)
        assert torch.equal(model.unload()(x), self.base(sample)(x))

    def test_a_merge_that_is_not_finite_changes_nothing(self, sample: nn.Module) -> None:
        model = self.adapted(sample)
        if not self.merges(model):
            return self.test_merging_changes_nothing(sample)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.fill_(torch.nan)
        frozen = frozen_state(model)
        with pytest.raises(StateError, match="not finite"):
            model.merge_adapter(safe_merge=True)
        assert same(frozen_state(model), frozen)
        assert not model.base_model.merged_adapters
        return None

    def test_disabled_is_the_base_layer(self, layer: nn.Module) -> None:
        model, x = self.adapted(layer), self.inputs(layer)
        expected = self.base(layer)(x)
        with model.disable_adapter():
            assert torch.equal(model(x), expected)
        if not self.merges(model):
            return
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(x), expected)
        assert not torch.equal(model(x), expected)

    # -- several adapters ---------------------------------------------------------------------------------------------

    def test_rows_match_separate_batches(self, layer: nn.Module) -> None:
        model, x = self.adapted(layer, "a", "b"), self.inputs(layer)
        routed = model(x, adapter_names=list(ROWS))
        for name in ("a", "b", "__base__"):
            rows = [index for index, other in enumerate(ROWS) if other == name]
            self.close(routed[rows], self.alone(model, name, x[rows]))

    @torch.no_grad()
    def test_rows_of_frozen_adapters_follow_their_changes(self, layer: nn.Module) -> None:
        model, x = self.adapted(layer, "a", "b").requires_grad_(False), self.inputs(layer)
        for _ in range(2):
            for _ in range(2):  # the second time with what the first one kept
                routed = model(x, adapter_names=list(ROWS))
            for name in ("a", "b"):
                rows = [index for index, other in enumerate(ROWS) if other == name]
                model.base_model.activate([name])  # which trains nothing
                self.close(routed[rows], model(x[rows]))
            for _, part in model.base_model.parts("a"):
                for parameter in part.parameters():
                    parameter.add_(0.1)

    def alone(self, model: PeftModel, name: str, x: Tensor) -> Tensor:
        """The output of one adapter, or of the base model."""
        if name == "__base__":
            with model.disable_adapter():
                return model(x)  # type: ignore[no-any-return]
        model.set_adapter(name)
        return model(x)  # type: ignore[no-any-return]

    def test_rows_must_fit(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample, "a", "b"), self.inputs(sample)
        with pytest.raises(StateError, match="no adapter named 'c'"):
            model(x, adapter_names=["a", "b", "c", "a", "a"])
        with pytest.raises(StateError, match="2 names for a batch of 5 rows"):
            model(x, adapter_names=["a", "b"])
        if self.merges(model):
            model.merge_adapter(["a"])
            with pytest.raises(StateError, match="unmerge first"):
                model(x, adapter_names=list(ROWS))

    def test_adapters_are_independent(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample, "a", "b"), self.inputs(sample)
        other = self.alone(model, "b", x)
        model.set_adapter("a")
        list(train(model, x))
        assert torch.equal(self.alone(model, "b", x), other)
        model.delete_adapter("a")
        assert torch.equal(self.alone(model, "b", x), other)
        model.delete_adapter("b")
        assert [type(m) for m in model.get_base_model().modules()] == [type(m) for m in self.base(sample).modules()]

    @pytest.mark.parametrize("order", ["partner inside", "partner outside"])
    def test_mixing(self, layer: nn.Module, order: str) -> None:
        partner = self.partner(layer)
        added = {"a": self.targeting("target", "second"), "partner": partner}
        names = ("partner", "a") if order == "partner inside" else ("a", "partner")
        model, x = PeftMixedModel(Toy(copy.deepcopy(layer)), added[names[0]], names[0]).eval(), self.inputs(layer)
        model.add_adapter(names[1], added[names[1]])
        model.set_adapter(names)  # which trains both
        self.move(model)
        expected = model(x)
        self.close(expected, sum(by_hand(a.chain(names), a.base_layer, x) for a in adapted_layers(model)))
        routed = model(x, adapter_names=["a", "partner", "a", "partner", "partner"])
        frozen = frozen_state(model)
        if not self.merges(model):
            with pytest.raises(CapabilityError):
                model.merge_adapter()
        else:
            model.merge_adapter()
            self.close(model(x), expected)
            model.unmerge_adapter()
        assert same(frozen_state(model), frozen)
        self.close(routed[[0, 2]], self.alone(model, "a", x[[0, 2]]))
        self.close(routed[[1, 3, 4]], self.alone(model, "partner", x[[1, 3, 4]]))

    def partner(self, layer: nn.Module) -> Any:
        """Another method for the same layers: LoRA, where it adapts them, or else this method again."""
        other = methods["lora"]
        if kind_of(layer) not in other(r=2).adapter_class().kinds:
            return self.targeting("target", "second")
        return other(r=2, target_modules=["target", "second"])


def by_hand(chain: list[Any], base: nn.Module, x: Tensor) -> Tensor:
    """One or two adapters around a layer, written out: the first one is the inner one."""
    if len(chain) == 1:
        return chain[0].adapt_output(base(chain[0].adapt_input(x)), x)  # type: ignore[no-any-return]
    inner, outer = chain
    outer_x = outer.adapt_input(x)
    y = inner.adapt_output(base(inner.adapt_input(outer_x)), outer_x)
    return outer.adapt_output(y, x)  # type: ignore[no-any-return]


def base_layers(model: PeftModel) -> list[nn.Module]:
    """The frozen layers inside a model's adapted ones."""
    return [m.base_layer for m in model.modules() if isinstance(m, AdaptedLayer)]
