"""Base models and layers, each the same on every call, that methods are compared on."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """Three numbered layers of two, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"layers": nn.ModuleList(self.layer() for _ in range(3))})
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 4)

    @staticmethod
    def layer() -> nn.Module:
        return nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body["layers"]:
            x = x + torch.tanh(layer["value"](layer["query"](x)))
        return self.classifier(self.norm(x))


class Single(nn.Module):
    """One layer by the name ``target``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.target = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.target(x)


def seeded(make):
    def factory():
        torch.manual_seed(7)
        return make().eval()

    return factory


LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (3, 5, 8)),
    "linear_no_bias": (lambda: nn.Linear(8, 6, bias=False), (3, 8)),
    "transposed": (lambda: Conv1D(6, 8), (3, 5, 8)),
    "embedding": (lambda: nn.Embedding(10, 6), None),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "conv2d_no_bias": (lambda: nn.Conv2d(4, 6, (1, 3), bias=False), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, padding=1), (2, 4, 3, 3, 3)),
}
GROUPED = {"conv2d_grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5))}
CONVS = ("conv1d", "conv2d", "conv2d_no_bias", "conv3d")


def single(name):
    make, shape = {**LAYERS, **GROUPED}[name]
    torch.manual_seed(3)
    inputs = torch.randint(0, 10, (3, 5)) if shape is None else torch.randn(shape)
    return seeded(lambda: Single(make())), inputs
