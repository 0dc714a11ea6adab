"""Small layers of every kind, and a model that holds two of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.view import LayerView

LayerFactory = Callable[[], nn.Module]


class Attention(nn.Module):
    """Attention of two query heads to one key head, by the usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 4)
        self.v_proj, self.o_proj = nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query = self.q_proj(x).view(*x.shape[:-1], 2, 4).transpose(1, 2)
        key, value = (project(x)[:, None] for project in (self.k_proj, self.v_proj))
        weights = (query @ key.transpose(2, 3) / 2).softmax(-1)
        return self.o_proj((weights @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


LAYERS: dict[str, dict[str, LayerFactory]] = {
    "linear": {
        "linear": lambda: nn.Linear(8, 12),
        "linear_no_bias": lambda: nn.Linear(8, 8, bias=False),
        "transposed": lambda: Conv1D(12, 8),
    },
    "embedding": {
        "embedding": lambda: nn.Embedding(10, 8),
        "embedding_padded": lambda: nn.Embedding(10, 8, padding_idx=0),
    },
    "conv": {
        "conv1d": lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1),
        "conv2d": lambda: nn.Conv2d(8, 12, (1, 3), padding="same", dilation=2, bias=False),
        "conv2d_circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        "conv3d": lambda: nn.Conv3d(8, 12, 2, padding=1),
    },
    "norm": {"layer_norm": lambda: nn.LayerNorm(8)},
    "other": {"attention": Attention},
}
"""Layers by kind (`adapterkit.nn.view.LayerView.kind`) and name. Each has 8 features or channels going in."""

GROUPED: LayerFactory = lambda: nn.Conv2d(8, 12, 3, groups=2)  # noqa: E731


class Toy(nn.Module):
    """The sum of two layers of the same shape, so that every adapter reaches the output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.target = layer
        self.second = copy.deepcopy(layer)
        self.use_reentrant: bool | None = None
        """How to recompute the layers in backward; None does not."""
        with torch.no_grad():
            for parameter in self.second.parameters():
                parameter.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_reentrant is None:
            return self.target(x) + self.second(x)  # type: ignore[no-any-return]
        return self._recomputed(self.target, x) + self._recomputed(self.second, x)

    def _recomputed(self, layer: nn.Module, x: Tensor) -> Tensor:
        anchor = torch.zeros((), requires_grad=True)  # a reentrant checkpoint needs an input with a gradient
        run = lambda x, anchor: layer(x) + anchor  # noqa: E731
        return checkpoint(run, x, anchor, use_reentrant=self.use_reentrant)  # type: ignore[no-any-return]


@cache
def layers_of(kinds: frozenset[str]) -> dict[str, nn.Module]:
    """The small layers of these kinds, always with the same values; ``any`` means all of them. Copy before changing."""
    with seeded(0):
        chosen = {
            name: make
            for kind, named in LAYERS.items()
            if kind in kinds or "any" in kinds
            for name, make in named.items()
        }
        return {name: make() for name, make in chosen.items()}


def inputs_of(layer: nn.Module, *, rows: int = 5) -> Tensor:
    """A batch for a layer, always the same: ``(rows, 3, in)``, ``(rows, 3)`` indices, ``(rows, channels, 6, ...)``."""
    base = layer.base_layer if isinstance(layer, AdaptedLayer) else layer
    view = LayerView(base)
    with seeded(1):
        if view.kind == "embedding":
            return torch.randint(0, view.in_features, (rows, 3))
        if view.kind == "conv":
            return torch.randn(rows, view.in_features, *[6] * len(view.layer.kernel_size))
        return torch.randn(rows, 3, view.in_features or next(base.parameters()).shape[-1])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from ``seed``; what they were outside is put back."""
    with torch.random.fork_rng(devices=[]):
        if torch.get_default_device().type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes milliseconds
        else:
            torch.manual_seed(seed)
        yield
