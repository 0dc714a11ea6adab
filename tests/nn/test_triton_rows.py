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
from adapterkit.nn.triton_rows import add_rows

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
"""


def test_it_adds_each_rows_own_product():
    pytest.importorskip("triton", reason="PyTorch's CPU builds come without Triton")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | interpreted, check=False)
    assert run.returncode == 0


def test_without_triton_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "adapterkit.nn.triton_rows", None)
    forms.row_kernel.cache_clear()
    assert forms.row_kernel() is None
    forms.row_kernel.cache_clear()
