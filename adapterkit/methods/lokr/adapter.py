r"""LoKr of LyCORIS (Yeh et al., 2023), https://arxiv.org/abs/2309.14859, after KronA (Edalati et al., 2022).

.. math:: W' = W + s\,(W_1 \otimes W_2), \quad W_2 = A_2 B_2 \text{ where that is smaller}, \quad s = \alpha / r

The Kronecker product is never formed: with ``x`` as a matrix ``X (c, d)``, ``(W_1 ⊗ W_2) x`` is ``W_1 X W_2^T``. For
r = 8 on a 768 x 768 layer, where ``W_1`` is 24 x 24 and ``W_2`` 32 x 32: 1,088 trained numbers, of full rank if the
factors are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.methods.lokr.config import LoKrConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.dropout import UpdateDropout
from adapterkit.nn.forms import RowForm
from adapterkit.nn.view import LayerView


@final
class LoKrAdapter(LayerAdapter):
    """``y + s (W_1 ⊗ W_2) x``, for ``out = a b`` and ``in = c d``."""

    kinds = frozenset({"linear", "embedding", "conv"})

    def __init__(self, config: LoKrConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.scaling = config.alpha / config.r
        self.drop = UpdateDropout(config.rank_dropout, config.module_dropout, rescale=config.rank_dropout_scale)
        rows, columns, *kernel = layer.weight_shape
        (a, b), (c, d) = divisors(rows, config.decompose_factor), divisors(columns, config.decompose_factor)
        self.sizes = a, b, c, d
        self._make_first(config.r if config.decompose_both and config.r < max(a, c) / 2 else None)
        self._make_second(config.r if config.r < max(b, d) / 2 else None, kernel, config.use_effective_conv2d)
        for parameter in self.parameters():
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        if config.init_weights == "lycoris":
            nn.init.zeros_(self.lokr_w2 if self.lokr_w2_b is None else self.lokr_w2_b)  # type: ignore[arg-type]
        elif config.init_weights:
            nn.init.zeros_(self.lokr_w1 if self.lokr_w1_a is None else self.lokr_w1_a)  # type: ignore[arg-type]

    def _make_first(self, r: int | None) -> None:
        a, _, c, _ = self.sizes
        self.lokr_w1 = _empty(a, c) if r is None else None  # (a, c)
        self.lokr_w1_a = None if r is None else _empty(a, r)  # (a, r)
        self.lokr_w1_b = None if r is None else _empty(r, c)  # (r, c)

    def _make_second(self, r: int | None, kernel: Sequence[int], effective: bool) -> None:
        _, b, _, d = self.sizes
        has_core = r is not None and effective and math.prod(kernel) > 1
        core_kernel = kernel if len(kernel) > 1 else [*kernel, 1]
        self.lokr_w2 = _empty(b, d, *kernel) if r is None else None  # (b, d, *kernel)
        self.lokr_t2 = _empty(r, r, *core_kernel) if r is not None and has_core else None  # (r, r, *kernel)
        self.lokr_w2_a: nn.Parameter | None = None  # (b, r), or (r, b) beside lokr_t2
        self.lokr_w2_b: nn.Parameter | None = None  # (r, d * kernel), or (r, d) beside lokr_t2
        if r is not None:
            self.lokr_w2_a = _empty(r, b) if has_core else _empty(b, r)
            self.lokr_w2_b = _empty(r, d) if has_core else _empty(r, d * math.prod(kernel))

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        update: Tensor = self.drop(self._update(x), 1 if self.layer.kind == "conv" else -1)
        return y + (update * self.scaling).to(y.dtype)

    def _update(self, x: Tensor) -> Tensor:
        """``(W_1 ⊗ W_2) x`` as ``W_1 X W_2^T``."""
        if self.layer.kind == "embedding":
            return self._looked_up(x)
        if self.layer.kind == "conv":
            return self._convolved(x)
        w1, inner, outer = (None if t is None else t.to(x.dtype) for t in self._factors())
        z = F.linear(x.reshape(*x.shape[:-1], *self.sizes[2:]), inner)  # type: ignore[arg-type]  # (..., c, b or r)
        z = torch.einsum("ac,...cd->...ad", w1, z)
        return (z if outer is None else F.linear(z, outer)).flatten(-2)

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm | None:
        if self.drop.drops:
            return None
        w1, *w2 = (factor.to(dtype) for factor in self._factors() if factor is not None)
        return RowForm((w1 * self.scaling, *w2), on_output=_add_rows)

    def _looked_up(self, x: Tensor) -> Tensor:
        """Row ``i b + j`` of ``W_1 ⊗ W_2`` is the Kronecker product of row ``i`` of one and row ``j`` of the other."""
        w1, inner, outer = self._factors()
        first = F.embedding(x // self.sizes[1], w1)  # (..., c)
        second = F.embedding(x % self.sizes[1], inner if outer is None else outer @ inner)  # (..., d)
        return self.layer.scaled((first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2))

    def _convolved(self, x: Tensor) -> Tensor:
        if self.layer.layer.groups > 1 or self._is_folded():
            return self.layer.apply(x, self._delta().to(x.dtype))
        w1, inner, outer = (None if t is None else t.to(x.dtype) for t in self._factors())
        c, d = self.sizes[2:]
        kernel = inner.reshape(inner.shape[0], d, *self.layer.weight_shape[2:])  # type: ignore[union-attr]
        z = self.layer.apply(x.reshape(-1, d, *x.shape[2:]), kernel)  # (rows * c, b or r, *space)
        z = torch.einsum("ac,ncr...->nar...", w1, z.reshape(-1, c, *z.shape[1:]))
        if outer is not None:
            z = torch.einsum("br,nar...->nab...", outer, z)
        return z.flatten(1, 2)

    def _is_folded(self) -> bool:
        """Whether the second matrix is the whole one of a 1-d convolution. PEFT's files then mean the Kronecker product
        of ``W_1`` with its last two dimensions, read off as the weight."""
        return self.lokr_w2 is not None and self.lokr_w2.ndim == 3

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        return weight + (self._delta() * self.scaling).to(weight.dtype)

    def _delta(self) -> Tensor:
        """``W_1 ⊗ W_2`` in the shape of the weight."""
        w1, inner, outer = self._factors()
        second = inner if outer is None else outer @ inner
        if not self._is_folded():
            second = second.flatten(1)
        return torch.kron(w1, second).reshape(self.layer.weight_shape)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """``W_1 (a, c)``, and ``W_2`` as one tensor ``(b, d...)`` and None, or as ``(r, d...)`` and ``(b, r)``."""
        w1 = self.lokr_w1_a @ self.lokr_w1_b if self.lokr_w1 is None else self.lokr_w1  # type: ignore[operator]
        if self.lokr_w2 is not None:
            return w1, self.lokr_w2, None
        a, b = cast(Tensor, self.lokr_w2_a), cast(Tensor, self.lokr_w2_b)
        if self.lokr_t2 is None:
            return w1, b, a
        return w1, torch.einsum("ij...,jd->id...", self.lokr_t2, b).flatten(1), a.T


def _add_rows(y: Tensor, x: Tensor, w1: Tensor, inner: Tensor, outer: Tensor | None = None) -> Tensor:
    """``y + W_1 X W_2^T`` of every row, whose own are ``w1 (rows, a, c)`` and ``inner (rows, b or r, d)``."""
    c, tokens = w1.shape[2], x.shape[1]
    z = x.reshape(len(x), tokens * c, -1) @ inner.mT  # (rows, tokens * c, b or r)
    z = (w1[:, None] @ z.view(len(x), tokens, c, -1)).flatten(1, 2)  # (rows, tokens * a, b or r)
    return y + (z if outer is None else z @ outer.mT).reshape(y.shape)


def divisors(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is ``size``: the first is ``factor`` if that divides it; else the first is the smaller,
    as large as ``factor`` allows (-1: as the square root allows)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    small = next(n for n in range(limit, 0, -1) if size % n == 0)
    return small, size // small


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))
