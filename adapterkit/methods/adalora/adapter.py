r"""AdaLoRA (Zhang et al., 2023), https://arxiv.org/abs/2303.10512: an update as a singular value decomposition.

.. math:: y = W x + s\,B\,(E \odot A x), \quad s = \alpha / r_0

``E`` holds the singular values. While training goes on, `adapterkit.methods.adalora.schedule` sets those to zero that
matter least over all layers, and the extra loss keeps the rows of ``A`` and the columns of ``B`` orthogonal. Files hold
what is left. For r = 12 on a 768 x 768 layer: 18,444 trained numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.methods.adalora.config import AdaLoraConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.forms import LowRank
from adapterkit.nn.view import LayerView


@final
class AdaLoraAdapter(LayerAdapter):
    """``y + s B (E * A x)``."""

    kinds = frozenset({"linear", "conv"})
    kept: Tensor | None  # (r,): the ranks that are in use, all if None

    def __init__(self, config: AdaLoraConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.scaling = config.lora_alpha / (config.init_r + 1e-5)  # the initial rank's, whatever is left of it
        self.dropout = config.lora_dropout
        flags = next(iter((config.rank_pattern or {}).values()), None)
        r = config.init_r if flags is None else sum(flags)
        rows, *rest = layer.weight_shape
        self.lora_A = nn.Parameter(torch.empty(r, math.prod(rest)))  # (r, in_features), or (r, in / groups * kernel)
        self.lora_B = nn.Parameter(torch.empty(rows, r))  # (out_features, r)
        self.lora_E = nn.Parameter(torch.zeros(r, 1) if config.init_lora_weights else torch.randn(r, 1))  # (r, 1)
        for factor in (self.lora_A, self.lora_B):
            nn.init.normal_(factor, std=0.02 if config.init_lora_weights else 1.0)
        self.register_buffer("kept", None, persistent=False)

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        inner = (self.lora_A * (self.lora_E * self.scaling)).to(x.dtype)
        return y + self.layer.apply_product(x, self.lora_B.to(x.dtype), inner).to(y.dtype)

    @override
    def low_rank(self) -> LowRank | None:
        if self.layer.kind != "linear" or (self.dropout and self.training):
            return None
        return LowRank(self.lora_B, self.lora_A * self.lora_E, self.scaling)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        delta = self.lora_B @ (self.lora_A * (self.lora_E * self.scaling))
        return weight + delta.reshape(weight.shape).to(weight.dtype)

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """Use these ranks only, ``(r,)`` of bool; the singular values of the others become zero."""
        self.kept = kept.to(self.lora_E.device)
        self.lora_E[~self.kept] = 0

    def compact(self) -> None:
        """Give up the parameters of the ranks that are not in use."""
        left, trained = self.tensors(), self.lora_E.requires_grad
        for name, tensor in left.items():
            setattr(self, name, nn.Parameter(tensor.clone(), requires_grad=trained))
        self.kept = None

    @override
    def tensors(self) -> dict[str, Tensor]:
        tensors = super().tensors()
        if self.kept is None:
            return tensors
        return {name: t[:, self.kept] if name == "lora_B" else t[self.kept] for name, t in tensors.items()}

    @override
    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if self.kept is None or tensors["lora_E"].shape == self.lora_E.shape:
            super().load_tensors(tensors)
            return
        full = {name: tensor.clone() for name, tensor in super().tensors().items()}
        full["lora_A"][self.kept] = tensors["lora_A"].to(full["lora_A"])
        full["lora_B"][:, self.kept] = tensors["lora_B"].to(full["lora_B"])
        full["lora_E"].zero_()[self.kept] = tensors["lora_E"].to(full["lora_E"])
        super().load_tensors(full)
