r"""LoHa, the low-rank Hadamard product of FedPara (Hyeon-Woo et al., 2021), https://arxiv.org/abs/2108.06098.

.. math:: W' = W + s\,(A_1 B_1) \odot (A_2 B_2), \quad s = \alpha / r

The product of two matrices of rank r has rank r² at most: ``(A_1 B_1) ⊙ (A_2 B_2) = U V``, where the rows of ``U`` and
the columns of ``V`` are the Kronecker products of theirs. Where r² is small this is applied as ``U (V x)``, and no
matrix of the weight's size is ever made. For r = 8 on a 768 x 768 layer: 24,576 trained numbers, rank 64.
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.methods.loha.config import LoHaConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.dropout import UpdateDropout
from adapterkit.nn.forms import LowRank, RowForm, add_low_rank_rows
from adapterkit.nn.view import LayerView


@final
class LoHaAdapter(LayerAdapter):
    """``y + s ((A_1 B_1) ⊙ (A_2 B_2)) x``."""

    kinds = frozenset({"linear", "embedding", "conv"})

    def __init__(self, config: LoHaConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.scaling = config.alpha / config.r
        self.drop = UpdateDropout(config.rank_dropout, config.module_dropout, rescale=True)
        r, (rows, *rest) = config.r, layer.weight_shape
        self.few_columns = 2 * r * r <= min(rows, math.prod(rest)) and (layer.kind != "conv" or layer.layer.groups == 1)
        self.hada_t1: nn.Parameter | None = None
        self.hada_t2: nn.Parameter | None = None
        if config.use_effective_conv2d and math.prod(rest[1:]) > 1:
            kernel = rest[1:] if len(rest) > 2 else [*rest[1:], 1]
            self.hada_t1 = nn.Parameter(torch.empty(r, r, *kernel))  # (r, r, *kernel), as are hada_t2's
            self.hada_t2 = nn.Parameter(torch.empty(r, r, *kernel))
            a, b = (r, rows), (r, rest[0])
        else:
            a, b = (rows, r), (r, math.prod(rest))
        self.hada_w1_a = nn.Parameter(torch.empty(a))  # (out_features, r), or (r, out) beside hada_t1
        self.hada_w1_b = nn.Parameter(torch.empty(b))  # (r, in_features), or (r, in / groups [* kernel])
        self.hada_w2_a = nn.Parameter(torch.empty(a))  # as hada_w1_a
        self.hada_w2_b = nn.Parameter(torch.empty(b))  # as hada_w1_b
        for parameter in self.parameters():
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        if config.init_weights:
            nn.init.zeros_(self.hada_w2_b)

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        update: Tensor = self.drop(self._update(x), 1 if self.layer.kind == "conv" else -1)
        return y + (update * self.scaling).to(y.dtype)

    def _update(self, x: Tensor) -> Tensor:
        """``((A_1 B_1) ⊙ (A_2 B_2)) x``."""
        (a1, b1), (a2, b2) = self._factors()
        if self.layer.kind == "embedding":  # only the rows that are looked up
            return self.layer.scaled((F.embedding(x, a1) @ b1) * (F.embedding(x, a2) @ b2))
        if not self.few_columns:
            return self.layer.apply(x, ((a1 @ b1) * (a2 @ b2)).reshape(self.layer.weight_shape).to(x.dtype))
        u, v = row_products(a1, a2).to(x.dtype), row_products(b1.T, b2.T).T.to(x.dtype)  # (rows, r²), (r², columns)
        return self.layer.apply_product(x, u, v)

    @override
    def low_rank(self) -> LowRank | None:
        if self.layer.kind != "linear" or not self.few_columns or self.drop.drops:
            return None
        (a1, b1), (a2, b2) = self._factors()
        return LowRank(row_products(a1, a2), row_products(b1.T, b2.T).T, self.scaling)

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm | None:
        if self.drop.drops:
            return None
        (a1, b1), (a2, b2) = self._factors()
        tensors = (a1.T * self.scaling, b1, a2.T, b2)
        return RowForm(tuple(t.to(dtype).contiguous() for t in tensors), on_output=_add_rows)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        (a1, b1), (a2, b2) = self._factors()
        delta = (a1 @ b1) * (a2 @ b2) * self.scaling
        return weight + delta.reshape(weight.shape).to(weight.dtype)

    def _factors(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """``(A_1, B_1), (A_2, B_2)``, each ``(rows, r)`` and ``(r, columns)`` of the weight as a matrix."""
        first = _with_kernel(self.hada_t1, self.hada_w1_a, self.hada_w1_b)
        return first, _with_kernel(self.hada_t2, self.hada_w2_a, self.hada_w2_b)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """The Kronecker product of each row of ``a (n, r)`` with the same row of ``b (n, s)``: ``(n, r s)``."""
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)


def _add_rows(y: Tensor, x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """``y + ((A_1 B_1) ⊙ (A_2 B_2)) x`` of every row, with ``A`` as ``(rows, r, out)`` and ``B`` as ``(rows, r, in)``.

    For few tokens ``x`` is between ``B_1`` and ``B_2^T``, which leaves ``(r, r)`` numbers to a token, and the product
    with ``A_1`` is written over that with ``A_2``: new memory of its size takes longer than the arithmetic. For many
    tokens the matrices of r² columns are made.
    """
    r, tokens = b1.shape[1], x.shape[1]
    if tokens > r:
        inner, outer = (
            (one.unsqueeze(2) * two.unsqueeze(1)).flatten(1, 2) for one, two in ((b1, b2), (a1, a2))
        )  # (rows, r², in), (rows, r², out)
        return add_low_rank_rows(y, x, inner, outer)
    between = (x.unsqueeze(2) * b1.unsqueeze(1)).flatten(1, 2) @ b2.mT  # (rows, tokens * r, r)
    return y + (between @ a2).view(len(x), tokens, r, -1).mul_(a1.unsqueeze(1)).sum(2)


def _with_kernel(t: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a, b) if t is None else (a.T, torch.einsum("ij...,jq->iq...", t, b).flatten(1))
