r"""BD-LoRA (Wang et al., 2025), https://arxiv.org/abs/2510.23346: one factor of a layer is block-diagonal, so that each
of ``n`` devices that share the layer computes with its own block and need not hear of the others'.

.. math:: y = W x + s B A x, \quad A = \mathrm{diag}(A_1, ..., A_n) \text{ or } B = \mathrm{diag}(B_1, ..., B_n)

``A`` has blocks where the devices share out the layer's inputs, ``B`` where they share out its outputs. A factor with
blocks is stored as these, one below the other: ``A`` is ``(r, in / n)``, ``B`` is ``(out, r / n)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterkit.errors import CapabilityError
from adapterkit.nn.view import LayerView


class Blocks(NamedTuple):
    """How many blocks each factor has; one is the factor whole."""

    a: int = 1
    b: int = 1


def blocks_of(config: Any, layer: LayerView) -> Blocks:
    """What ``use_bdlora`` says of a layer; ``config`` is that of the layer, see `LoraConfig.at`.

    Raises:
        CapabilityError: it is no linear layer, or cannot be divided into so many blocks.
    """
    settings = config.use_bdlora
    if settings is None:
        return Blocks()
    if layer.kind != "linear":
        raise CapabilityError(f"use_bdlora is for linear layers, and not a {type(layer.layer).__name__}")
    count: int = settings.nblocks
    first = bool(settings.target_modules_bd_a)
    size, what = (layer.in_features, "inputs") if first else (layer.out_features, "outputs")
    for number, of in ((config.r, "r="), (size, f"a layer's {what}, ")):
        if number % count:
            raise CapabilityError(f"use_bdlora: nblocks={count} does not divide {of}{number}")
    return Blocks(a=count) if first else Blocks(b=count)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, blocks: int) -> Tensor:
    """``diag(blocks) x``; a factor with blocks has no bias.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in / blocks)``.
        bias: ``(out,)`` of a factor that is whole.
        blocks: how many.
    """
    if blocks == 1:
        return F.linear(x, weight, bias)
    inputs, parts = x.reshape(*x.shape[:-1], blocks, -1), weight.reshape(blocks, -1, weight.shape[1])
    return torch.einsum("...ni,noi->...no", inputs, parts).flatten(-2)


def spread(weight: Tensor, blocks: int) -> Tensor:
    """The factor whole, ``(out, in)`` of the blocks ``(out, in / blocks)``, with zeros beside them."""
    if blocks == 1:
        return weight
    whole: Tensor = torch.block_diag(*weight.chunk(blocks))  # type: ignore[no-untyped-call]
    return whole
