"""The forms of one low-rank product beside a layer's own: each gives what the plain formula gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapterkit.nn.low_rank import (
    add_as_sums,
    add_traced,
    low_rank_beside,
    low_rank_linear,
    product_added,
    product_beside,
)

SCALING = 1.3
SHAPES = [(1, 8), (1, 1, 8), (5, 8), (2, 3, 8), (8,)]


def numbers(shape, dtype=torch.float32, bias=True):
    """An input, and a layer and factors for it."""
    generator = torch.Generator().manual_seed(0)
    x, weight, own, a, b = (
        torch.randn(size, generator=generator).to(dtype) for size in (shape, (6, 8), (6,), (3, 8), (6, 3))
    )
    return x, weight, own if bias else None, a, b


def plain(x, weight, bias, a, b):
    return F.linear(x, weight, bias) + SCALING * F.linear(F.linear(x, a), b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_beside(shape, dtype, bias):
    given = numbers(shape, dtype, bias)
    torch.testing.assert_close(product_beside(*given, SCALING), plain(*given))


def test_a_row_that_lies_apart():
    x, *given = numbers((1, 8))
    apart = torch.stack([x, x], dim=2)[..., 0]
    assert not apart.is_contiguous()
    torch.testing.assert_close(product_beside(apart, *given, SCALING), plain(x, *given))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_a_compiler_is_given_is_derived_as_well(shape):
    x, weight, bias, *factors = numbers(shape, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, *factors)]
    y = add_traced(F.linear(x, weight, bias), x, *factors, SCALING)
    expected = plain(x, weight, bias, *factors)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_a_row_as_sums_keeps_the_factors_accuracy(factors):
    x, weight, bias, a, b = numbers((1, 1, 8), torch.bfloat16)
    y = add_as_sums(F.linear(x, weight, bias), x, a.to(factors), b.to(factors), SCALING)
    assert (y.dtype, y.shape) == (torch.bfloat16, (1, 1, 6))
    torch.testing.assert_close(y.float(), plain(*(t.float() for t in (x, weight, bias, a, b))), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("shape", [(1, 8), (5, 8)])
def test_compiled(shape):
    given = numbers(shape)
    run = torch.compile(lambda *tensors: low_rank_linear(*tensors, SCALING), backend="eager", fullgraph=True)
    torch.testing.assert_close(run(*given), plain(*given))


def test_a_row_as_sums_in_float64():
    x, weight, bias, *factors = numbers((1, 8), torch.float64)
    y = add_as_sums(F.linear(x, weight, bias), x, *factors, SCALING)
    torch.testing.assert_close(y, plain(x, weight, bias, *factors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (1,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_beside_an_output_that_others_hold(shape, wanted):
    x, weight, bias, a, b = numbers(shape, torch.float64)
    y = F.linear(x, weight, bias)
    leaves = [tensor.detach().requires_grad_(place in wanted) for place, tensor in enumerate((y, x, a, b))]
    asked = [leaves[place] for place in wanted]
    found = low_rank_beside(*leaves, SCALING)
    expected = leaves[0] + SCALING * F.linear(F.linear(*leaves[1:3]), leaves[3])
    torch.testing.assert_close(found, expected)
    first = [torch.autograd.grad(out.sin().sum(), asked, create_graph=True) for out in (found, expected)]
    torch.testing.assert_close(*first)
    second = [torch.autograd.grad(sum(g.sin().sum() for g in gradients), asked, allow_unused=True)
              for gradients in first]  # fmt: skip
    torch.testing.assert_close(*second)
    assert torch.equal(leaves[0], y)


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("of_y", [torch.float32, torch.bfloat16])
def test_a_product_beside_has_the_outputs_type(of_y, rows, graded):
    x, weight, bias, a, b = numbers((rows, 8), torch.bfloat16)
    y = F.linear(x, weight, bias).to(of_y)
    with torch.set_grad_enabled(graded):
        found = low_rank_beside(y, x, a.float().requires_grad_(graded), b.float(), SCALING)
    assert (found.dtype, found.requires_grad) == (of_y, graded)
    expected = y.float() + SCALING * (x.float() @ a.float().T @ b.float().T)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.03)


@pytest.mark.parametrize("of_y", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_beside_without_gradients(shape, of_y):
    x, weight, bias, a, b = numbers(shape)
    y = F.linear(x, weight, bias).to(of_y)
    before = y.clone()
    found = product_added(y, x, a, b, SCALING)
    torch.testing.assert_close(found, (before.float() + SCALING * F.linear(F.linear(x, a), b)).to(of_y))
    assert torch.equal(y, before)


def test_a_product_beside_drops_as_the_fused_one_does():
    x, weight, bias, a, b = numbers((5, 8), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, a, b)]
    results = []
    for make in (lambda: low_rank_linear(x, weight, bias, a, b, SCALING, dropout=0.5),
                 lambda: low_rank_beside(F.linear(x, weight, bias), x, a, b, SCALING, dropout=0.5)):  # fmt: skip
        torch.manual_seed(3)
        y = make()
        results.append((y, *torch.autograd.grad(y.cos().sum(), leaves)))
    torch.testing.assert_close(*results)
