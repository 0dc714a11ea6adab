"""What every law of a layer method starts from: the method's config on small layers of each kind it adapts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from adapterkit.build import get_peft_model
from adapterkit.config.base import PeftConfig
from adapterkit.model import PeftModel
from adapterkit.nn.adapter import LayerAdapter, wrap
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.view import kind_of
from adapterkit.testing.claims import merges
from adapterkit.testing.toys import Toy, inputs_of, layers_of, seeded

ROWS = ("a", "__base__", "b", "a", "__base__")
"""One name a row of `inputs_of`."""


class AdapterCase:
    """The method under test; subclass `adapterkit.testing.AdapterContract` instead and set these."""

    config: ClassVar[PeftConfig]

    layers: ClassVar[Sequence[nn.Module] | Mapping[str, nn.Module] | None] = None
    """The layers to adapt; None takes small ones of every kind that the adapter class says it adapts."""

    starts_as_base: ClassVar[bool] = True
    """Whether a new adapter changes nothing. A method for which it does not hold says so here."""

    tolerance: ClassVar[float] = 1e-4
    """How far two ways to compute the same in float32 may be apart, absolutely and relatively."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """``layer`` is every layer, ``sample`` the first one of each class, ``kind`` the first one of each kind."""
        layers = self._layers()
        picks: dict[str, Callable[[Any], Any]] = {"layer": id, "sample": type, "kind": kind_of}
        for name in picks.keys() & set(metafunc.fixturenames):
            first = {picks[name](layer): each for each, layer in reversed(layers.items())}
            chosen = [each for each in layers if each in first.values()]
            metafunc.parametrize(name, [layers[each] for each in chosen], ids=chosen)

    def _layers(self) -> dict[str, nn.Module]:
        if self.layers is None:
            return layers_of(self.config.adapter_class().kinds)
        if isinstance(self.layers, Mapping):
            return dict(self.layers)
        return {f"{index}-{type(layer).__name__}": layer for index, layer in enumerate(self.layers)}

    # -- what a subclass may replace ----------------------------------------------------------------------------------

    def targeting(self, *targets: str) -> PeftConfig:
        """The config for these modules of the `Toy`."""
        changes: dict[str, Any] = {"target_modules": list(targets)}
        for field in getattr(self.config, "subset_fields", ()):
            changes[field] = [name for name in targets if name == "target"]
        return self.config.model_copy(update=changes)

    def inputs(self, layer: nn.Module) -> Tensor:
        """A batch of five rows for a layer."""
        return inputs_of(layer)

    def move(self, model: nn.Module) -> None:
        """Put every trainable parameter away from where it started."""
        with seeded(2), torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))

    # -- shared by the laws -------------------------------------------------------------------------------------------

    def adapted(self, layer: nn.Module, *names: str, moved: bool = True, **options: Any) -> PeftModel:
        """A model with adapters of these names (``a`` if none is given) on both layers, the first one active."""
        first, *others = names or ("a",)
        with seeded(3):
            model = get_peft_model(Toy(copy.deepcopy(layer)), self.targeting("target", "second"), first, **options)
            for name in others:
                model.add_adapter(name, self.targeting("target", "second"), **options)
            model.set_requires_grad([first, *others])
        if moved:
            self.move(model)
        return model.eval()

    def base(self, layer: nn.Module) -> Toy:
        """The same model without adapters."""
        return Toy(copy.deepcopy(layer)).requires_grad_(False).eval()

    def close(self, actual: Any, expected: Any) -> None:
        torch.testing.assert_close(actual, expected, atol=self.tolerance, rtol=self.tolerance)

    def merges(self, model: PeftModel) -> bool:
        """Whether the method's statements about itself mean that it can be merged here."""
        return all(
            merges(type(adapter), layer.view.kind)
            for layer in adapted_layers(model)
            for adapter in layer.adapters.values()
            if isinstance(adapter, LayerAdapter)
        ) and not any(adds_bias(layer) for layer in adapted_layers(model))


def adapted_layers(model: PeftModel) -> list[AdaptedLayer]:
    """Every adapted layer of a model."""
    return list(model.base_model.layers.values())


def adds_bias(layer: AdaptedLayer) -> bool:
    """Whether a layer without a bias gives something other than zero for zero: no weight alone expresses that."""
    if layer.view.kind != "linear" or layer.view.bias is not None:
        return False
    chain = layer.chain(layer.selection.active)
    return bool(wrap(chain, layer.base_layer, torch.zeros(1, layer.view.in_features)).any())


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model that receives no gradient."""
    return {n: t.detach().clone() for n, t in model.state_dict(keep_vars=True).items() if not t.requires_grad}


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model that receives a gradient."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names and types and, bit for bit, the same values."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def train(model: nn.Module, x: Tensor, *, steps: int = 3) -> Iterator[dict[str, Tensor]]:
    """Some optimiser steps towards a random output; yields each step's gradients by parameter name."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    with seeded(4):
        goal = torch.randn_like(model(x).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(x) - goal) ** 2).mean().backward()
        yield {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}
        optimizer.step()
