"""What is kept for backward, to the byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, get_peft_model
from tests.gates.counting import Allocations, saved, saved_bytes
from tests.gates.installed import methods_on_linear, on_linear

IN, OUT, R, ROWS = 144, 176, 4, 96

NEEDS_THE_WEIGHTS_SHAPE: dict[str, str] = {}
"""Methods that keep a tensor of the weight's shape for backward: why their mathematics needs it."""


class Siblings(nn.Module):
    """Two layers of one input, as queries and keys are."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.query = nn.Linear(IN, OUT, dtype=dtype)
        self.key = nn.Linear(IN, OUT, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.query(x) + self.key(x)).sum()


def kept(
    dtype: torch.dtype = torch.float32,
    *,
    autocast: bool = False,
    of: torch.dtype | None = None,
    rows: int = ROWS,
    **fields,
) -> int:
    config = LoraConfig(r=R, target_modules=["query", "key"], **fields)
    model = get_peft_model(Siblings(dtype), config).train()
    x = torch.randn(rows, IN, dtype=of or dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return saved_bytes(lambda: model(x), model)


def formula(size: int) -> int:
    """One input however many layers share it, and ``A x`` of each; nothing of what factors were cast to."""
    return ROWS * IN * size + 2 * ROWS * R * size


def test_float32():
    assert kept() == formula(4)


def test_a_bf16_base_keeps_its_own_type():
    assert kept(torch.bfloat16) == formula(2)


def test_a_few_rows_of_bf16_keep_their_product_with_a_in_float32():
    assert kept(torch.bfloat16, rows=3) == 3 * IN * 2 + 2 * 3 * R * 4


def test_dropout_keeps_a_seed():
    assert kept(lora_dropout=0.1) == formula(4)
    assert kept(torch.bfloat16, lora_dropout=0.1) == formula(2)


def test_autocast_keeps_what_it_computes_with():
    weights = 2 * IN * OUT * 2  # the base's own, cast in every forward
    assert kept(of=torch.float32, autocast=True) == formula(2) + ROWS * IN * 2 + weights  # each casts the input


@pytest.mark.parametrize("name", methods_on_linear())
def test_no_method_keeps_a_tensor_of_the_weights_shape(name):
    model = get_peft_model(Siblings(), on_linear(name, ["query", "key"])).train()
    x = torch.randn(ROWS, IN, requires_grad=True)
    large = [tuple(tensor.shape) for tensor in saved(lambda: model(x), model) if tensor.numel() == IN * OUT]
    assert bool(large) == (name in NEEDS_THE_WEIGHTS_SHAPE), f"{name} keeps {large}: give the reason, if there is one"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_makes_no_tensor_of_the_weights_shape(dtype):
    def largest(**options: bool) -> int:
        wide = nn.Sequential(nn.Linear(512, 1024, dtype=dtype))
        model = get_peft_model(wide, LoraConfig(target_modules=["0"], init_lora_weights=False))
        with Allocations() as made:
            model.merge_and_unload(**options)
        return made.largest

    assert largest() <= 512 * 1024 // 4
    assert largest(safe_merge=True) == 512 * 1024, "the old weight is kept, so that a merge can be refused"
