"""Products with few columns: the same numbers whichever way round they are taken."""

from __future__ import annotations

import pytest
import torch

from adapterkit.nn import thin


@pytest.mark.parametrize("is_amd", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [5, 40])
def test_both_ways_round_are_the_product(monkeypatch, is_amd, dtype, rows):
    monkeypatch.setattr(thin, "_is_amd", lambda: is_amd)
    x, a, b = (torch.randn(size, dtype=dtype) for size in ((rows, 8), (3, 8), (8, 3)))
    for found, expected in ((thin.times_transposed(x, a), x @ a.T), (thin.times(x, b), x @ b)):
        assert found.shape == (rows, 3)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_amd", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ranks", [3, 20, 40])
@pytest.mark.parametrize("rows", [7, 24, 100])
def test_a_product_is_added_strip_by_strip(monkeypatch, is_amd, dtype, ranks, rows):
    monkeypatch.setattr(thin, "_is_amd", lambda: is_amd)
    torch.manual_seed(0)
    matrix, outer, inner = (torch.randn(size, dtype=dtype) for size in ((rows, 9), (ranks, rows), (9, ranks)))
    expected = matrix + 1.5 * outer.T @ inner.T
    thin.add_product(matrix, outer.T, inner.T, 1.5)  # as for a transposed layer
    torch.testing.assert_close(matrix, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_amd", [True, False])
def test_float32_on_amd_s_processors_is_taken_as_few_rows(monkeypatch, is_amd):
    monkeypatch.setattr(thin, "_is_amd", lambda: is_amd)
    x, a = torch.randn(40, 8), torch.randn(3, 8)
    assert thin.times_transposed(x, a).is_contiguous() is not is_amd
    assert thin.times(x, a.T).is_contiguous() is not is_amd
    assert thin.times_transposed(x.double(), a.double()).is_contiguous()
    assert thin.times_transposed(x[:5], a).is_contiguous()
    assert thin.times(x[:5], a.T).is_contiguous()
