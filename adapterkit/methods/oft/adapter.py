r"""OFT (Qiu et al., 2023), https://arxiv.org/abs/2306.07280, on the input (OFTv2, https://arxiv.org/abs/2506.19847).

.. math:: y = W R^T x + b, \quad R = \operatorname{diag}(R_1, \ldots), \quad R_i = (I + Q_i)(I - Q_i)^{-1}, Q_i^T = -Q_i

Every block of the input is rotated before the frozen layer sees it, so the angles between the weight's rows stay what
they are. The product is a series of few terms, ``I + 2 Q + 2 Q² + ... + Q^n``, or solved for exactly (there with
``-Q``). For blocks of 32 on a 768-wide input: 11,904 trained numbers.

In a convolution a block spans the ``in * kernel`` numbers under the kernel. They differ from place to place by a shift,
so rotating an *image* block by block and then convolving it would rotate each number by a different place of its block
for every position of the kernel. What is meant, ``y_p = W R^T patch_p`` for every patch, is a convolution with the
kernel ``W R^T``, whatever stride, padding and dilation are; that is what is computed here, and what merging gives.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.methods.oft.cayley import series, skew, solved
from adapterkit.methods.oft.config import OFTConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.forms import RowForm
from adapterkit.nn.module import Module
from adapterkit.nn.view import LayerView


class Rotation(Module):
    """Block-diagonal rotations, each from the numbers above the diagonal of a skew-symmetric matrix."""

    def __init__(self, config: OFTConfig, size: int) -> None:
        super().__init__()
        self.block = block_size(config, size)
        self.terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else None
        self.dropout = 0.0 if config.block_share else config.module_dropout
        self.eps = config.eps if config.coft else None
        count = 1 if config.block_share else size // self.block
        self.weight = nn.Parameter(torch.zeros(count, self.block * (self.block - 1) // 2))  # (r, b (b - 1) / 2)
        if not config.init_weights:
            nn.init.normal_(self.weight, std=0.1)

    def blocks(self) -> Tensor:
        """``(r, b, b)``, or ``(1, b, b)`` if shared; a row vector is rotated by multiplying it from the left."""
        values = self.weight if self.eps is None else self._near_zero(self.eps)
        size, terms = self.block, self.terms
        rotations = solved(skew(values, size)) if terms is None else series(values, size, terms)
        if not (self.training and self.dropout):
            return rotations
        count, eye = len(values), torch.eye(size, dtype=values.dtype, device=values.device)
        kept = values.new_ones(count, 1, 1)
        kept[torch.randperm(count, device=values.device)[: int(self.dropout * count)]] = 0
        return kept * rotations + (1 - kept) * eye

    def _near_zero(self, eps: float) -> Tensor:
        """The values moved into the ball that COFT allows; while training the parameter itself is moved there."""
        with torch.no_grad():
            length = self.weight.norm(dim=1, keepdim=True) * 2**0.5  # of the matrix: each value stands in it twice
            moved = self.weight * (eps / len(self.weight) ** 0.5 / length).clamp(max=1)
            if self.training:
                self.weight.copy_(moved)
        return self.weight + (moved - self.weight).detach()  # type: ignore[no-any-return]

    def forward(self, x: Tensor, *, back: bool = False) -> Tensor:
        """Rotate the last dimension of ``x``, block by block: ``x R``, or ``x R^T``."""
        rotations, blocks = self.blocks().to(x.dtype), x.reshape(*x.shape[:-1], -1, self.block)
        rotations = rotations.transpose(1, 2) if back else rotations
        if len(rotations) == 1:
            return (blocks @ rotations[0]).reshape(x.shape)
        return (blocks.flatten(0, -3).transpose(0, 1) @ rotations).transpose(0, 1).reshape(x.shape)


@final
class OFTAdapter(LayerAdapter):
    """``W R^T x``; of an embedding ``W R``, which rotates what is looked up."""

    kinds = frozenset({"linear", "embedding", "conv"})

    def __init__(self, config: OFTConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.rotation = "oft_embedding_R" if layer.kind == "embedding" else "oft_R"
        self.add_module(self.rotation, Rotation(config, math.prod(layer.weight_shape[1:])))

    def _rotated(self, x: Tensor, *, back: bool = False) -> Tensor:
        return self._modules[self.rotation](x, back=back)  # type: ignore[misc, no-any-return]

    @override
    def adapt_input(self, x: Tensor) -> Tensor:
        return self._rotated(x) if self.layer.kind == "linear" else x

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        if self.layer.kind == "embedding":
            return self._rotated(y).to(y.dtype)
        return y if self.layer.kind == "linear" else y + self.layer.apply(x, self._kernel_change().to(x.dtype))

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm | None:
        rotation: Any = self._modules[self.rotation]
        if rotation.training and rotation.dropout:
            return None
        return RowForm((rotation.blocks().to(dtype),), on_input=_rows_rotated)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        if self.layer.kind == "conv":
            return weight + self._kernel_change().to(weight.dtype)
        return self._rotated(weight, back=self.layer.kind == "linear")

    def _kernel_change(self) -> Tensor:
        """``W R^T - W`` of a convolution, in float32 at least."""
        weight = self.layer.weight.to(self.oft_R.weight.dtype)  # type: ignore[union-attr, arg-type]
        return self._rotated(weight.flatten(1), back=True).reshape(weight.shape) - weight


def _rows_rotated(x: Tensor, blocks: Tensor) -> Tensor:
    """``x R`` of every row, whose own are ``blocks (rows, r or 1, b, b)``."""
    parts = x.reshape(*x.shape[:2], -1, blocks.shape[-1]).transpose(1, 2)  # (rows, r, tokens, b)
    return (parts @ blocks).transpose(1, 2).flatten(2)


def block_size(config: OFTConfig, size: int) -> int:
    """The size of a block of a layer with ``size`` inputs; warns if what the config says does not divide them."""
    wanted = config.oft_block_size or config.r
    found = nearest_divisor(size, wanted)
    if found != wanted:
        field = "oft_block_size" if config.oft_block_size else "r"
        warnings.warn(f"OFT: {field}={wanted} does not divide {size} inputs; {found} is used there", stacklevel=2)
    return found if config.oft_block_size else size // found


def nearest_divisor(size: int, wanted: int) -> int:
    """The divisor of ``size`` that is nearest to ``wanted``, the lower one of two."""
    return next(n for d in itertools.count() for n in (wanted - d, wanted + d) if n > 0 and size % n == 0)
