r"""LoRA (Hu et al., 2021), https://arxiv.org/abs/2106.09685, and DoRA (Liu et al., 2024), https://arxiv.org/abs/2402.09353.

.. math:: y = W x + s B A x, \quad s = \alpha / r \text{ or } \alpha / \sqrt{r}

    x (in) ──► W (out, in) ──────────────────────► + ──► y (out)
       └─────► A (r, in) ──► B (out, r) ──► * s ───┘

For r = 8 on a 768 x 768 layer: 12,288 trained numbers beside 589,824 frozen ones. DoRA learns the length ``m`` of every
row of the weight apart from its direction: ``y = m / ||W + s B A|| * (W + s B A) x``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.errors import CapabilityError, StateError
from adapterkit.methods.lora import activated, blocks, combine, fused, grouped, init, limits, minor, rows, start, tied
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.combination import Combination
from adapterkit.nn.dropout import seeded_dropout
from adapterkit.nn.forms import LowRank, RowForm
from adapterkit.nn.module import Module, empty
from adapterkit.nn.view import LayerView


class Factor(Module):
    """A weight, and perhaps a bias, under the names that files have: ``lora_A.weight``."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, *shape: int, bias: bool = False) -> None:
        super().__init__()
        self._parameters["weight"] = nn.Parameter(empty(*shape))  # two a layer: the short way counts
        self._parameters["bias"] = nn.Parameter(torch.zeros(shape[0])) if bias else None


@final
class LoraAdapter(LayerAdapter):
    """``y + s B A x``; with DoRA ``(y - b + s B A x) * m / ||W + s B A|| + b``."""

    kinds = frozenset({"linear", "embedding", "conv", "stack"})
    combination = "svd"
    lora_A: Factor
    lora_B: Factor
    lora_embedding_A: nn.Parameter
    lora_embedding_B: nn.Parameter
    lora_magnitude_vector: nn.Parameter
    start_A: Tensor
    start_B: Tensor
    awaits_data: str | None = None
    """The scheme, until the data were seen that it starts from."""

    def __init__(self, config: LoraConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        limits.refuse(config, layer)
        self.r = config.r
        self.scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        self.dropout = config.lora_dropout
        self.casts_factors = config.compute_dtype == "input"
        self.group = grouped.group_of(config, layer)
        self.blocks = blocks.blocks_of(config, layer)
        self.is_minor = config.init_lora_weights == minor.SCHEME
        self._make_factors(layer, config.lora_bias)
        self.is_activated = config.alora_invocation_tokens is not None
        usual = self.casts_factors and not self.is_activated and self.group == 1 and self.blocks == (1, 1)
        self.is_plain = layer.kind == "linear" and usual and not config.lora_bias
        start.begin(self, config)
        self.reads_weight = config.use_dora
        if config.use_dora:
            self.lora_magnitude_vector = nn.Parameter(self._start_magnitude())  # (out_features,), or (1, out, 1...)

    def _make_factors(self, layer: LayerView, bias: bool) -> None:
        r = self.r
        if layer.kind == "embedding":
            self.lora_embedding_A = nn.Parameter(torch.empty(r, layer.in_features))  # (r, num_embeddings)
            self.lora_embedding_B = nn.Parameter(torch.empty(layer.out_features, r))  # (embedding_dim, r)
            return
        kernel: tuple[int, ...] = ()
        ones: tuple[int, ...] = ()
        groups = 1
        if layer.kind == "stack":
            r *= layer.weight_shape[0]  # A's rows are grouped by expert, B's columns by rank
        if layer.kind == "conv":
            kernel, groups = layer.layer.kernel_size, layer.layer.groups
            ones = (1,) * len(kernel)
            if r % groups:
                raise CapabilityError(f"r={r} is no multiple of the convolution's {groups} groups")
        inputs, ranks = layer.in_features // (self.group * self.blocks.a), r // (groups * self.blocks.b)
        own = self._modules  # the short way again
        own["lora_A"] = Factor(r, inputs, *kernel)  # (r, in_features / group / blocks, *kernel)
        own["lora_B"] = Factor(layer.out_features, ranks, *ones, bias=bias)  # (out_features, r / groups / blocks, 1...)

    def factors(self) -> init.Factors:
        """``A, B`` by whatever names the kind of layer gives them."""
        if self.layer.kind == "embedding":
            return self.lora_embedding_A, self.lora_embedding_B
        own: Any = self._modules
        return own["lora_A"].weight, own["lora_B"].weight

    def _spread(self) -> init.Factors:
        """``A (r, in_features...)`` and ``B (out_features, r...)`` where they are stored in parts."""
        a, b = self.factors()
        if self.is_plain:
            return a, b
        return blocks.spread(grouped.spread(a, self.group), self.blocks.a), blocks.spread(b, self.blocks.b)

    @property
    @override
    def fixed(self) -> tuple[Tensor, ...]:
        return (self.factors()[1],) if self.is_minor else ()

    @override
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self.settle()

    def settle(self, awaits_data: str | None = None) -> None:
        """Note what the start still waits for, if anything."""
        self.awaits_data = awaits_data

    def _start_factors(self) -> list[init.Factors]:
        """The factors it started with, where their product is not zero."""
        return [(self.start_A, self.start_B)] if "start_A" in self._buffers else []

    def _start_magnitude(self) -> Tensor:
        if not self.factors()[0].is_meta:
            return self.norm().cpu()
        size, ones = self.layer.out_features, self._ones()
        return torch.empty(1, size, *ones) if ones else torch.empty(size)

    def whole_factors(self) -> init.Factors:
        """``A, B`` whose product, scaled, is the whole change: with the product it started with taken away."""
        (a, b), starts = self._spread(), self._start_factors()
        if not starts:
            return a, b
        return torch.cat([a, *(start for start, _ in starts)]), torch.cat([b, *(-start for _, start in starts)], dim=1)

    def _require_start(self) -> None:
        if self.awaits_data:
            raise StateError(
                f"init_lora_weights={self.awaits_data!r} starts from data, which this adapter has not seen; a run "
                "gives it some, and so do initialize_lora_eva_weights, preprocess_corda and preprocess_loraga"
            )

    @classmethod
    @override
    def combined_config(
        cls, configs: Sequence[LoraConfig], layers: Mapping[str, Sequence[Any]], how: Combination
    ) -> LoraConfig:
        return combine.combined_config(configs, layers, how)

    @override
    def misdescribed(self, config: LoraConfig) -> str | None:
        if "start_A" not in self._buffers or not isinstance(config.init_lora_weights, bool):
            return None
        return f"init_lora_weights={config.init_lora_weights}, but it subtracts the product that it started with"

    @classmethod
    @override
    def since(
        cls, config: LoraConfig, state: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> tuple[LoraConfig, dict[str, Tensor]]:
        return combine.since(config, state, start)

    @override
    def tied(self, layer: LayerView) -> LayerAdapter:
        return tied.TiedLora(self, layer)

    @override
    def combine(self, adapters: Sequence[LoraAdapter], weights: Sequence[float], how: Combination) -> None:
        combine.become(self, adapters, weights, how)

    @classmethod
    @override
    def fused(cls, chain: Sequence[LoraAdapter], layer: nn.Linear, x: Tensor) -> Tensor | None:
        return fused.forward(chain, layer, x)

    @classmethod
    @override
    def beside(cls, chain: Sequence[LoraAdapter], y: Tensor, x: Tensor) -> Tensor | None:
        return fused.beside(chain, y, x)

    @override
    def low_rank(self) -> LowRank | None:
        dropped = self.dropout and self.training
        if not self.is_plain or dropped or self.reads_weight:
            return None
        self._require_start()
        a, b = fused.factors(self)
        return LowRank(b, a, self.scaling)

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm | None:
        if not self.reads_weight:
            return super().row_form(dtype)
        dropped = self.dropout and self.training
        return None if dropped or not self.is_plain else rows.form_of_dora(self, dtype)

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        update = self._update(x).to(y.dtype)
        if not hasattr(self, "lora_magnitude_vector"):
            return y + update
        scale = self._along_outputs((self.lora_magnitude_vector.flatten() / self.norm().flatten()), y)
        if self.layer.bias is None:
            return scale * (y + update)
        bias = self._along_outputs(self.layer.bias, y)
        return scale * (y - bias + update) + bias

    def _update(self, x: Tensor) -> Tensor:
        """``s B A drop(x)``, less the product it started with: that is the base's, of which nothing is dropped."""
        self._require_start()
        a, b = self.factors()
        bias = None if self.layer.kind == "embedding" else self.lora_B.bias
        drops = self.dropout and self.training and self.layer.kind != "embedding"
        update = self._product(seeded_dropout(x, self.dropout) if drops else x, a, b, bias)
        for a, b in self._start_factors():
            update = update - self._product(x, a, b, None)
        return update * (activated.mask(x, self.layer.inputs) * self.scaling if self.is_activated else self.scaling)

    def _product(self, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        """``B A x + bias`` in the layer's own operation."""
        if self.layer.kind == "embedding":
            return self.layer.scaled(F.embedding(x, a.T, self.layer.layer.padding_idx) @ b.T)
        if self.casts_factors:
            a, b, bias = a.to(x.dtype), b.to(x.dtype), None if bias is None else bias.to(x.dtype)
        else:
            x = x.to(a.dtype)
        if self.layer.kind == "conv":
            return self.layer.pointwise(self.layer.apply(x, a, groups=1), b, bias)
        low = blocks.linear(grouped.pooled(x, self.group), a, None, self.blocks.a)
        return blocks.linear(low, b, bias, self.blocks.b)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        if self.is_activated:
            raise CapabilityError("alora_invocation_tokens: no weight acts on some tokens only: it cannot be merged")
        if self.layer.kind == "conv" and self.layer.layer.groups > 1:
            raise CapabilityError("LoRA on a grouped convolution mixes the groups: no grouped weight expresses it")
        if self.layer.kind == "stack":
            return torch.baddbmm(weight, *(factor.to(weight.dtype) for factor in self._by_expert()), alpha=self.scaling)
        changed = weight + self._delta().to(weight.dtype)
        if not hasattr(self, "lora_magnitude_vector"):
            return changed
        return changed * self._per_output(self.lora_magnitude_vector.flatten() / self.norm().flatten()).to(weight.dtype)

    @override
    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        if self.layer.kind != "embedding" and self.lora_B.bias is not None:
            own_bias = self.lora_B.bias * self.scaling
            return own_bias if bias is None else own_bias + bias
        own = self.layer.bias
        if bias is None or own is None or not hasattr(self, "lora_magnitude_vector"):
            return bias
        return (bias - own) * (self.lora_magnitude_vector.flatten() / self.norm().flatten()) + own

    def _delta(self) -> Tensor:
        """``s B A`` in the orientation of the weight, less the product it started with."""
        self._require_start()
        delta = self._outer(*self._spread())
        for a, b in self._start_factors():
            delta = delta - self._outer(a, b)
        return delta * self.scaling

    def _outer(self, a: Tensor, b: Tensor) -> Tensor:
        product = (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
        return product.T if self.layer.kind == "embedding" else product

    def _by_expert(self) -> tuple[Tensor, Tensor]:
        """B ``(experts, out_features, r)`` and A ``(experts, r, in_features)``."""
        a, b = self.factors()
        return b.reshape(b.shape[0], self.r, -1).permute(2, 0, 1), a.reshape(-1, self.r, a.shape[1])

    def norm(self) -> Tensor:
        """``||W + s B A||`` over all but the outputs, held constant in backward (DoRA, section 4.3)."""
        self._require_start()
        with torch.no_grad():
            a, b = self.whole_factors()
            weight = self.layer.weight.T if self.layer.kind == "embedding" else self.layer.weight
            a, b = (factor.flatten(1).to(weight.device) for factor in (a, b))  # made on the CPU, and then moved
            norm = fused.row_norms(weight.flatten(1), a, b, self.scaling)
            return norm.reshape(1, -1, *self._ones()) if self.layer.kind == "conv" else norm

    def norm_of(self, weight: Tensor) -> Tensor:
        """The norm of a weight over all but the outputs."""
        outputs = 1 if self.layer.kind == "embedding" else 0
        norm: Tensor = torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != outputs])
        return norm.reshape(1, -1, *[1] * (weight.ndim - 2)) if self.layer.kind == "conv" else norm

    def _along_outputs(self, vector: Tensor, y: Tensor) -> Tensor:
        """A vector ``(out_features,)`` shaped to scale the outputs ``y``: channels come before space."""
        return vector.reshape(-1, *[1] * len(self._ones())).to(y.dtype)

    def _per_output(self, vector: Tensor) -> Tensor:
        """A vector ``(out_features,)`` shaped to scale the outputs of the weight."""
        return vector if self.layer.kind == "embedding" else vector.reshape(-1, *[1] * (1 + len(self._ones())))

    def _ones(self) -> tuple[int, ...]:
        return (1,) * len(self.layer.layer.kernel_size) if self.layer.kind == "conv" else ()
