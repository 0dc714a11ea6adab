"""HRA against PEFT's."""

from __future__ import annotations

import pytest
import torch
from adapterkit_hra import HraConfig
from torch import nn

from tests.parity.helpers import assert_parity, peft


class Net(nn.Module):
    def __init__(self, target: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.target = target
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.target(x).tanh())


def linear() -> nn.Module:
    torch.manual_seed(7)
    return Net(nn.Linear(8, 6), nn.Linear(6, 3)).eval()


def convolution() -> nn.Module:
    torch.manual_seed(7)
    return Net(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 2, 1)).eval()


FIELDS = [
    {},
    {"r": 5, "init_weights": False},
    {"r": 3, "apply_GS": True, "init_weights": False},
    {"bias": "hra_only"},
    {"bias": "all"},
    {"modules_to_save": ["head"]},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize(("factory", "shape"), [(linear, (3, 5, 8)), (convolution, (2, 4, 7, 7))])
def test_numbers_and_files(factory, shape, fields):
    torch.manual_seed(3)
    kwargs = {"r": 4, "target_modules": ["target"], **fields}
    assert_parity(kwargs, HraConfig, peft.HRAConfig, factory, torch.randn(shape))
