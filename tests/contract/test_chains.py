"""Every ordered pair of installed layer methods, and chains of three, on one layer: the onion, merged and by row."""

from __future__ import annotations

import copy
from itertools import islice, permutations

import pytest
import torch
from torch import nn

from adapterkit import PeftMixedModel
from adapterkit.config.layer import LayerConfig
from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import wrap
from adapterkit.registry import methods
from adapterkit.testing.case import AdapterCase, frozen_state, same
from adapterkit.testing.toys import Toy, inputs_of, layers_of

LAYERS = layers_of(frozenset({"linear", "embedding", "conv"}))


def case(name: str) -> AdapterCase:
    config = methods[name]
    return type(name, (AdapterCase,), {"config": config(**config.example)})()


CASES = {name: case(name) for name, config in methods.items() if issubclass(config, LayerConfig)}


def adapting(kind: str) -> list[str]:
    return [name for name, each in CASES.items() if {kind, "any"} & each.config.adapter_class().kinds]


def chains() -> list[tuple[str, tuple[str, ...]]]:
    pairs = [("linear", pair) for pair in permutations(adapting("linear"), 2)]
    pairs += [("conv2d", pair) for pair in permutations(adapting("conv"), 2)]
    pairs += [("embedding", pair) for pair in permutations(adapting("embedding"), 2)]
    return pairs + [("linear", chain) for chain in islice(permutations(adapting("linear"), 3), 0, None, 29)]


@pytest.mark.parametrize(
    ("layer", "names"), chains(), ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_chain_is_its_onion(layer, names):
    x, first = inputs_of(LAYERS[layer]), CASES[names[0]]
    torch.manual_seed(0)
    model = PeftMixedModel(Toy(copy.deepcopy(LAYERS[layer])), first.targeting("target", "second"), names[0])
    for name in names[1:]:
        model.add_adapter(name, CASES[name].targeting("target", "second"))
    model.set_adapter(names)
    first.move(model)
    expected, frozen = model.eval()(x), frozen_state(model)
    onion = [wrap(each.chain(names), each.base_layer, x) for each in model.base_model.layers.values()]
    torch.testing.assert_close(expected, sum(onion), atol=1e-4, rtol=1e-4)
    if first.merges(model):
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected, atol=1e-3, rtol=1e-3)
        model.unmerge_adapter()
    else:
        with pytest.raises(CapabilityError):
            model.merge_adapter()
    assert same(frozen_state(model), frozen)
    routed = model(x, adapter_names=[names[row % len(names)] for row in range(len(x))])
    for index, name in enumerate(names):
        model.set_adapter(name)
        torch.testing.assert_close(routed[index :: len(names)], model(x[index :: len(names)]), atol=1e-4, rtol=1e-4)


def test_there_are_chains():
    assert all(isinstance(layer, nn.Module) for layer in LAYERS.values())
    assert len(chains()) > 50
