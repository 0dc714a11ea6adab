"""The kernel for rows on a GPU; where Triton is installed without one, in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from adapterkit.nn import forms

PROGRAM = """
import torch
from adapterkit.nn.triton_rows import add_product, add_rows

torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)
for rows, rank, width, outputs, dtype, bound in (
    (3, 5, 70, 33, torch.float32, 1e-6),
    (2, 16, 2048, 1030, torch.bfloat16, 1e-2),
    (2, 64, 300, 600, torch.float32, 1e-6),
    (1, 1, 8, 8, torch.float32, 1e-6),
):
    sizes = (rows, 1, outputs), (rows, 1, width), (rows, rank, width), (rows, rank, outputs)
    y, x, a, b = (torch.randn(size).to(dtype) for size in sizes)
    expected = y.double() + x.double() @ a.double().mT @ b.double()
    found = add_rows(y, x, a, b)
    assert found is y
    assert (found.double() - expected).norm() / expected.norm() < bound, (rows, rank)

for rank, width, outputs, dtype, factors, bound in (
    (5, 70, 33, torch.float32, torch.float32, 1e-6),
    (16, 2048, 1030, torch.bfloat16, torch.float32, 1e-2),
    (16, 96, 48, torch.bfloat16, torch.bfloat16, 1e-2),
    (64, 300, 600, torch.float16, torch.float32, 1e-2),
):
    for turned in (False, True):
        for shape in ((), (1, 1)):
            y, x = torch.randn(*shape, outputs).to(dtype), torch.randn(*shape, width).to(dtype)
            a = torch.randn(rank, width).to(factors)
            b = torch.randn(rank, outputs).T if turned else torch.randn(outputs, rank)
            b = b.to(factors)
            expected = y.double() + 1.5 * (x.double() @ a.double().T @ b.double().T)
            for _ in range(3):  # the kernel as it was found is started from the second time on
                found = add_product(torch.empty_like(y), y, x, a, b, 1.5)
                assert (found.double() - expected).norm() / expected.norm() < bound, (rank, turned)
            before = x[..., 1:].clone()  # a place that is not aligned
            shifted = add_product(torch.empty_like(y), y, x[..., 1:], a[:, 1:].contiguous(), b, 1.5)
            expected = y.double() + 1.5 * (before.double() @ a[:, 1:].double().T @ b.double().T)
            assert (shifted.double() - expected).norm() / expected.norm() < bound, (rank, turned)
            assert add_product(y, y, x, a, b, 1.5) is y
"""


def test_it_adds_each_rows_own_product():
    pytest.importorskip("triton", reason="PyTorch's CPU builds come without Triton")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | interpreted, check=False)
    assert run.returncode == 0


def test_without_triton_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "adapterkit.nn.triton_rows", None)
    forms.row_kernels.cache_clear()
    assert forms.row_kernels() is None
    forms.row_kernels.cache_clear()
