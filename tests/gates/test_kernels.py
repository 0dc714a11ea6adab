"""Kernels that an adapted layer launches beyond its base: what a GPU waits for, whatever the machine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, get_peft_model
from tests.gates.counting import kernels
from tests.gates.installed import methods_on_linear, on_linear

BASE = {"inference": 1, "training": 2}
"""A linear layer's own product, and the one that takes its gradient to its input."""

LOSS = 2
"""``sum`` and its derivative."""


class One(nn.Module):
    """A linear layer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 64, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def lora(active: int = 1, dtype: torch.dtype = torch.float32, **fields):
    config = LoraConfig(target_modules=["layer"], init_lora_weights=False, **fields)
    names = [f"a{number}" for number in range(active)]
    model = get_peft_model(One(dtype), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config.model_copy(update={"lora_alpha": 3 + len(name)}))
    model.base_model.activate(names)
    return model


def inferred(model, x) -> int:
    model.requires_grad_(False).eval()
    with torch.no_grad():
        model(x)  # what is made once
        return len(kernels(lambda: model(x))) - BASE["inference"]


def trained(model, x) -> int:
    model.train()
    x = x.requires_grad_()
    return len(kernels(lambda: model(x).sum().backward())) - BASE["training"] - LOSS


def x_of(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, 48, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("active", [1, 2, 5])
def test_inference_takes_two_however_many_adapters_are_active(active, dtype):
    assert inferred(lora(active, dtype), x_of(100, dtype)) == 2


@pytest.mark.parametrize("rows", [1, 100])
def test_a_trained_adapter_takes_two_where_no_gradient_is_wanted(rows):
    model, x = lora().eval(), x_of(rows)
    with torch.no_grad():
        model(x)
        assert len(kernels(lambda: model(x))) - BASE["inference"] == 2


def test_a_few_rows_of_bf16_on_a_cpu_take_two_more_in_float32():
    assert inferred(lora(1, torch.bfloat16), x_of(1, torch.bfloat16)) == 4


@pytest.mark.parametrize("active", [1, 3])
def test_beside_a_layer_that_is_listened_to_it_takes_as_many(active):
    model = lora(active)
    model.get_base_model().layer.base_layer.register_forward_hook(lambda *_: None)
    assert inferred(model, x_of(100)) == 2


def test_training_beside_a_layer_that_is_listened_to_takes_eight():
    model = lora()
    model.get_base_model().layer.base_layer.register_forward_hook(lambda *_: None)
    assert trained(model, x_of(100)) == 8


def test_a_disabled_adapter_takes_none():
    model = lora().eval()
    with model.disable_adapter():
        assert inferred(model, x_of(3)) == 0


def test_training_takes_seven():
    assert trained(lora(), x_of(3)) == 7 <= 8


def test_training_on_a_bf16_base_casts_each_factor_twice_and_a_gradient():
    assert trained(lora(dtype=torch.bfloat16), x_of(100, torch.bfloat16)) == 7 + 5


def test_training_on_a_few_rows_of_bf16_casts_what_is_short_and_adds_apart():
    assert trained(lora(dtype=torch.bfloat16), x_of(3, torch.bfloat16)) == 7 + 3 + 2


def test_rows_by_adapter_take_as_many_kernels_for_nine_as_for_twelve():
    def routed(used: int) -> int:
        model, x = lora(12, r=8).requires_grad_(False).eval(), x_of(24)
        names = [f"a{row % used}" for row in range(24)]
        with torch.no_grad():
            model(x, adapter_names=names)
            return len(kernels(lambda: model(x, adapter_names=names)))

    assert routed(2) == routed(9) == routed(12) == BASE["inference"] + 2


@pytest.mark.parametrize("name", methods_on_linear())
def test_adapters_that_are_loaded_cost_the_active_one_nothing(name):
    config = on_linear(name, ["layer"])
    model = get_peft_model(One(), config, "first").eval()
    alone = kernels(lambda: model(x_of(3)))
    for number in range(4):
        model.add_adapter(f"other{number}", config)
    assert kernels(lambda: model.eval()(x_of(3))) == alone


ONE_AFTER_ANOTHER = {"scale_shift"}
"""Methods that have no `row_form`."""


@pytest.mark.parametrize("name", methods_on_linear())
@pytest.mark.parametrize("shape", [(12, 48), (12, 3, 48), (12, 40, 48)], ids=str)
def test_rows_take_as_many_kernels_for_four_adapters_as_for_twelve(name, shape):
    config, x = on_linear(name, ["layer"]), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    inputs = dict.fromkeys(config.forward_inputs, torch.zeros(12, dtype=torch.long))
    model = get_peft_model(One(), config, "a0")
    for number in range(1, 12):
        model.add_adapter(f"a{number}", config)
    model.requires_grad_(False).eval()

    def routed(used: int) -> list[str]:
        names = [f"a{row % used}" for row in range(12)]
        with torch.no_grad():
            model(x, adapter_names=names, **inputs)
            return kernels(lambda: model(x, adapter_names=names, **inputs))

    if name in ONE_AFTER_ANOTHER:
        assert len(routed(4)) < len(routed(12))
    else:
        assert routed(4) == routed(12)
