"""Every kind of layer seen in one way, whatever stores its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapterkit.nn import storage
from adapterkit.nn.view import LayerView


class Packed(nn.Module):
    """A linear layer of a quantiser that nobody knows: sizes, and no dense weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", (linear.weight * 100).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.packed.to(x.dtype) / 100, self.bias)


class Int8(nn.Module):
    """The same with a weight of integers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = nn.Parameter((linear.weight * 100).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) / 100, self.bias)


LAYERS = [
    (nn.Linear(5, 4), "linear", (5, 4)),
    (Conv1D(4, 5), "linear", (5, 4)),
    (nn.Embedding(6, 4), "embedding", (6, 4)),
    (nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), "conv", (2, 4)),
    (nn.Conv2d(4, 4, (1, 3), padding="same", groups=2, padding_mode="circular"), "conv", (4, 4)),
    (nn.Conv3d(2, 4, 2, padding=1, padding_mode="replicate"), "conv", (2, 4)),
    (nn.ConvTranspose1d(2, 4, 3), "other", (0, 0)),
    (nn.LayerNorm(4), "other", (0, 0)),
]


def inputs(view: LayerView) -> Tensor:
    torch.manual_seed(1)
    if view.kind == "embedding":
        return torch.randint(0, 6, (3, 2))
    return (
        torch.randn(3, view.in_features, *[5] * len(view.layer.kernel_size))
        if view.kind == "conv"
        else torch.randn(3, 5)
    )


@pytest.mark.parametrize(("layer", "kind", "sizes"), LAYERS, ids=lambda value: type(value).__name__)
def test_kinds_and_sizes(layer, kind, sizes):
    view = LayerView(layer)
    assert (view.kind, (view.in_features, view.out_features)) == (kind, sizes)


@pytest.mark.parametrize(
    "layer", [layer for layer, kind, _ in LAYERS if kind != "other"], ids=lambda m: type(m).__name__
)
def test_the_operation_with_the_weight_is_the_layer(layer):
    view = LayerView(layer)
    x, bias = inputs(view), view.bias
    y = view.apply(x, view.weight)
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * (y.ndim - 2 if view.kind == "conv" else 0))
    torch.testing.assert_close(y, layer(x))
    assert view.weight.shape == view.weight_shape
    assert not view.weight.requires_grad


class Int32(Int8):
    """Several numbers in an integer, as others pack them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight = nn.Parameter(self.weight.int(), requires_grad=False)


@pytest.mark.parametrize("quantised", [Packed, Int8, Int32])
def test_an_unknown_quantiser_is_read_off(quantised):
    torch.manual_seed(0)
    layer = quantised(nn.Linear(5, 4))
    view = LayerView(layer)
    assert storage.is_quantised(layer)
    assert view.kind == "linear"
    assert view.dtype == torch.float32
    x = torch.randn(3, 5)
    torch.testing.assert_close(nn.functional.linear(x, view.weight, view.bias), layer(x))


def test_a_layer_without_tensors_has_a_type_and_a_place():
    view = LayerView(nn.Tanh())
    assert (view.dtype, view.device.type) == (torch.float32, "cpu")


def test_a_view_registers_nothing():
    holder = nn.Module()
    holder.view = LayerView(nn.Linear(3, 3))
    assert not list(holder.parameters())
    assert not holder.state_dict()
