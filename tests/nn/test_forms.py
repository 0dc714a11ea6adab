"""Rows of many adapters: what is written is there, however the numbers lie in memory."""

from __future__ import annotations

import pytest
import torch

from adapterkit.nn.forms import add_low_rank_rows


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("owners", [1, 3])
def test_every_row_gets_its_own_product(owners, transposed):
    torch.manual_seed(0)
    inner, outer = torch.randn(owners, 2, 5), torch.randn(owners, 2, 4)
    x = torch.randn(3, 5, 6).mT if transposed else torch.randn(3, 6, 5)
    y = torch.randn(3, 4, 6).mT if transposed else torch.randn(3, 6, 4)
    expected = y + x @ inner.mT @ outer
    torch.testing.assert_close(add_low_rank_rows(y, x, inner, outer), expected)
    torch.testing.assert_close(y, expected)
