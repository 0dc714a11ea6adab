"""What is LoHa's own: the low-rank route is the dense one, its derivatives are derivatives, and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoHaConfig
from adapterkit.methods.loha.adapter import LoHaAdapter, row_products
from adapterkit.nn.dropout import UpdateDropout
from adapterkit.nn.view import LayerView

LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (3, 12)),
    "conv1d": (lambda: nn.Conv1d(12, 10, 3, padding=1), (3, 12, 5)),
    "conv2d": (lambda: nn.Conv2d(12, 10, 3, stride=2), (3, 12, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(12, 10, (1, 2, 2)), (3, 12, 3, 3, 3)),
}


def adapter(layer, **settings):
    torch.manual_seed(0)
    return LoHaAdapter(LoHaConfig(**{"r": 2, "init_weights": False, **settings}), LayerView(layer))


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_both_routes_give_the_same(kind, effective):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    loha = adapter(layer, use_effective_conv2d=effective)
    assert loha.few_columns
    y = layer(x)
    expected = loha.adapt_output(y, x)
    loha.few_columns = False
    torch.testing.assert_close(loha.adapt_output(y, x), expected, atol=1e-5, rtol=1e-4)


def test_the_product_of_two_ranks_is_a_product():
    a1, a2, b1, b2 = (torch.randn(5, 3), torch.randn(5, 2), torch.randn(7, 3), torch.randn(7, 2))
    product = row_products(a1, a2) @ row_products(b1, b2).T
    torch.testing.assert_close(product, (a1 @ b1.T) * (a2 @ b2.T))


def test_derivatives_of_effective_convolutions():
    layer = nn.Conv2d(3, 4, 2).double()
    loha = adapter(layer, use_effective_conv2d=True).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    parameters = tuple(loha.parameters())
    names = [name for name, _ in loha.named_parameters()]

    def output(*values):
        return torch.func.functional_call(loha, dict(zip(names, values, strict=True)), (x,))

    loha.forward = lambda x: loha.adapt_output(torch.zeros((), dtype=x.dtype), x)
    assert torch.autograd.gradcheck(output, parameters)


def test_dropout_of_outputs_keeps_their_mean():
    drop, update = UpdateDropout(0.5, 0.0, rescale=True), torch.ones(3, 8, 4)
    torch.manual_seed(0)
    dropped = drop(update, 1)
    assert torch.equal(dropped, dropped[:1, :, :1].expand_as(dropped))  # whole outputs, the same in every row
    kept = dropped[0, :, 0] > 0
    torch.testing.assert_close(dropped[0, :, 0], kept * (8 / kept.sum()))
    torch.testing.assert_close(dropped.mean(), torch.tensor(1.0))
    assert torch.equal(drop.eval()(update, 1), update)


def test_dropout_of_everything_is_as_often_as_said():
    drop = UpdateDropout(0.0, 0.25, rescale=False)
    torch.manual_seed(0)
    kept = torch.stack([drop(torch.ones(2)) for _ in range(2000)])
    assert set(kept.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert abs(kept.mean().item() - 0.75) < 0.03


def test_dropping_every_output_gives_zero():
    torch.manual_seed(0)
    drop = UpdateDropout(1 - 1e-9, 0.0, rescale=True)
    assert torch.equal(drop(torch.ones(4, 3)), torch.zeros(4, 3))
