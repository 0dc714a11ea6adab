"""The other ways to derive: forward mode, many gradients at once, the second derivative, outputs that are written to,
autocast of float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from adapterkit.nn.low_rank import low_rank_beside, low_rank_linear


class Tensors:
    def __init__(self, dtype=torch.float64, rows=(5,)) -> None:
        torch.manual_seed(0)
        self.x, self.a, self.b = (torch.randn(size, dtype=dtype) for size in ((*rows, 6), (2, 6), (4, 2)))
        self.weight, self.bias = torch.randn(4, 6, dtype=dtype), torch.randn(4, dtype=dtype)

    def inside(self, x, a, b):
        return low_rank_linear(x, self.weight, self.bias, a, b, 1.5)

    def beside(self, x, a, b):
        return low_rank_beside(nn.functional.linear(x, self.weight, self.bias), x, a, b, 1.5)

    def plain(self, x, a, b):
        return nn.functional.linear(x, self.weight + 1.5 * b @ a, self.bias)


@pytest.fixture(params=["inside", "beside"])
def way(request):
    return request.param


@pytest.fixture(params=[(5,), (2, 3)], ids=["rows", "columns"])
def both(request, way):
    tensors = Tensors(rows=request.param)
    return getattr(tensors, way), tensors


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("trained", [True, False])
def test_forward_mode(both, trained):
    computed, t = both
    found = []
    for function in (computed, t.plain):
        with forward_ad.dual_level():
            given = [
                forward_ad.make_dual(v.clone().requires_grad_(trained), torch.ones_like(v)) for v in (t.x, t.a, t.b)
            ]
            found.append(forward_ad.unpack_dual(function(*given)).tangent)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,)], ids=["x", "A", "B"])
def test_one_gradient_alone(both, wanted):
    computed, t = both
    found = []
    for function in (computed, t.plain):
        given = [v.clone().requires_grad_(place in wanted) for place, v in enumerate((t.x, t.a, t.b))]
        found.append(torch.autograd.grad(function(*given).sin().sum(), [given[place] for place in wanted]))
    torch.testing.assert_close(*found)


def test_many_gradients_at_once(both):
    computed, t = both
    found, many = [], torch.randn(3, *t.x.shape[:-1], 4, dtype=torch.float64)
    for function in (computed, t.plain):
        given = [v.clone().requires_grad_() for v in (t.x, t.a, t.b)]
        found.append(torch.autograd.grad(function(*given), given, many, is_grads_batched=True))
    torch.testing.assert_close(*found)


def test_the_second_derivative(both):
    computed, t = both
    given = [v.clone().requires_grad_() for v in (t.x, t.a, t.b)]
    assert torch.autograd.gradgradcheck(computed, given)


def test_the_second_derivative_with_dropout(way):
    t = Tensors()
    given = [v.clone().requires_grad_() for v in (t.x, t.a, t.b)]

    def computed(x, a, b):
        torch.manual_seed(3)  # the same elements are dropped each time
        y = nn.functional.linear(x, t.weight, t.bias)
        inside = way == "inside"
        given = (x, t.weight, t.bias) if inside else (y, x)
        return (low_rank_linear if inside else low_rank_beside)(*given, a, b, 1.5, dropout=0.5)

    first = torch.autograd.grad(computed(*given).sin().sum(), given)
    torch.testing.assert_close(torch.autograd.grad(computed(*given).sin().sum(), given, create_graph=True), first)
    assert torch.autograd.gradgradcheck(computed, given)


@pytest.mark.parametrize("graded", [True, False])
def test_what_is_dropped_is_drawn_anew_from_pytorch_s_stream(way, graded):
    t = Tensors()
    given = (t.x, t.weight, t.bias) if way == "inside" else (torch.zeros(5, 4, dtype=torch.float64), t.x)
    compute = low_rank_linear if way == "inside" else low_rank_beside
    torch.manual_seed(3)
    factors = t.a.requires_grad_(graded), t.b
    first, second = (compute(*given, *factors, 1.5, dropout=0.5) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(compute(*given, *factors, 1.5, dropout=0.5), first)


def test_the_output_may_be_written_to(both):
    computed, t = both
    found = []
    for function in (computed, t.plain):
        given = [v.clone().requires_grad_() for v in (t.x, t.a, t.b)]
        y = function(*given)
        y /= 8  # as Longformer's queries are
        y[0] = 1  # as what Wav2Vec2 masks
        found.append(torch.autograd.grad(y.square().sum(), given))
    torch.testing.assert_close(*found)


def test_autocast_leaves_float64_alone(way):
    t = Tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = getattr(t, way)(t.x, t.a, t.b)
    assert y.dtype is torch.float64
    torch.testing.assert_close(y, t.plain(t.x, t.a, t.b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_laid_out_as_their_parameters(dtype):
    t = Tensors(dtype)
    a, b = (nn.Parameter(v.float()) for v in (t.a, t.b))
    for _ in range(2):
        t.inside(t.x, a, b).sum().backward()
    assert a.grad.is_contiguous()
    assert b.grad.is_contiguous()
