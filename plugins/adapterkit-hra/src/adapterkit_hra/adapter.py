r"""HRA (Yuan, Liu and Xu, 2024), "Bridging the gap between low-rank and orthogonal adaptation via Householder
reflection adaptation", https://arxiv.org/abs/2405.17484.

.. math:: y = W H_1 \cdots H_r x, \quad H_i = I - 2 u_i u_i^\top, \quad \|u_i\| = 1

The product is never formed. In compact WY form (Schreiber and Van Loan, 1989) it is
:math:`I - U T U^\top` with :math:`T^{-1} = \tfrac12 I + \mathrm{striu}(U^\top U)`, which costs two thin products and
one triangular solve of size r. With ``apply_GS`` the :math:`u_i` are orthogonal, and :math:`T = 2 I`.

    x (in) ──► U^T (r, in) ──► (U T) (in, r) ──► x - ... ──► W (out, in) ──► y (out)

A convolution sees its patches reflected: its weight, one row a filter, is turned in the same way.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.forms import RowForm, add_low_rank_rows
from adapterkit.nn.view import LayerView
from adapterkit_hra.config import HraConfig


@final
class HraAdapter(LayerAdapter):
    """``y = W (I - U T U^T) x``."""

    kinds = frozenset({"linear", "conv"})

    def __init__(self, config: HraConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.orthogonal = config.apply_GS
        self.kernel: tuple[int, ...] = ()
        if layer.kind == "conv":
            self.kernel = layer.layer.kernel_size
            if layer.layer.groups > 1:
                raise CapabilityError("HRA turns whole patches, and a grouped convolution sees only parts of them")
        self.hra_u = nn.Parameter(torch.empty(layer.in_features * math.prod(self.kernel), config.r))  # (in_features, r)
        self._start(paired=config.init_weights and not config.apply_GS)

    @torch.no_grad()
    def _start(self, *, paired: bool) -> None:
        nn.init.kaiming_uniform_(self.hra_u, a=math.sqrt(5))
        if paired:
            pairs = self.hra_u.shape[1] // 2
            self.hra_u[:, 1 : 2 * pairs : 2] = self.hra_u[:, 0 : 2 * pairs : 2]

    def _factors(self) -> tuple[Tensor, Tensor]:
        """``(U T)^T`` and ``U^T``, each ``(r, in_features)``: the product of all reflections is ``I - U T U^T``.

        Columns need no length of 1 for that: with ``T^{-1} = striu(U^T U) + diag(U^T U) / 2`` their lengths cancel.
        """
        u = self.hra_u if self.hra_u.element_size() >= 4 else self.hra_u.float()  # the solvers know no half types
        if self.orthogonal:
            q = torch.linalg.qr(u).Q.T
            return 2 * q, q
        rows = u.T.contiguous()  # so laid out, the products with long sums are the fast ones
        eye = torch.eye(len(rows), dtype=u.dtype, device=u.device)
        inverse = torch.tril(rows @ rows.T) * (1 - eye / 2) + eye * 1e-30  # no reflection by a column of zeros
        return torch.linalg.solve_triangular(inverse, rows, upper=False), rows

    @override
    def adapt_input(self, x: Tensor) -> Tensor:
        if self.kernel:
            return x
        ut, u = (factor.to(x.dtype) for factor in self._factors())
        rows = x.reshape(-1, x.shape[-1])
        return torch.addmm(rows, rows @ u.T, ut, alpha=-1).view(x.shape)

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm:
        ut, u = (factor.to(dtype) for factor in self._factors())
        return RowForm((u, -ut), on_input=_rows_turned, has_ranks=True)

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        if not self.kernel:
            return y
        ut, u = self._factors()
        filters = u.reshape(len(u), -1, *self.kernel)  # (r, in, *kernel)
        weights = self.layer.weight.to(ut.dtype).flatten(1) @ ut.T  # (out, r)
        hidden = self.layer.apply(x, filters.to(x.dtype))
        weights = weights.reshape(*weights.shape, *[1] * len(self.kernel))
        return y - self.layer.pointwise(hidden, weights.to(hidden.dtype), None).to(y.dtype)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        ut, u = (factor.to(weight.dtype) for factor in self._factors())
        turned = self.layer.weight.to(weight.dtype) if self.kernel else weight  # what the output is computed from
        return weight - (turned.flatten(1) @ ut.T @ u).reshape(weight.shape)


def _rows_turned(x: Tensor, u: Tensor, change: Tensor) -> Tensor:
    """``(I - U T U^T) x`` of every row, whose own are ``u`` and ``-U T``, ``(rows, r, in_features)``."""
    return add_low_rank_rows(x.clone(), x, u, change)
