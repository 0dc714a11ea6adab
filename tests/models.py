"""Small models that several test files use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two projections and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + torch.tanh(self.value(self.query(x))))


class Net(nn.Module):
    """An embedding, two blocks in a `ModuleList`, and a classifier; takes indices ``(rows, columns)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return self.classifier(h.mean(1))


def net() -> Net:
    """Always the same model, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Net().eval()


def batch(rows: int = 4) -> Tensor:
    """Always the same batch."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 10, (rows, 5), generator=generator)


def move(model: nn.Module) -> None:
    """Put every trainable parameter away from its start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
