r"""LoRA of an embedding, on the output layer that shares its weight: ``E + s (B A)^T`` for both.

The output layer's factors are the embedding's, transposed and changed over: ``A' = B^T (r, dim)``, ``B' = A^T (n, r)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from adapterkit.errors import CapabilityError, CheckpointError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.combination import Combination
from adapterkit.nn.dropout import seeded_dropout
from adapterkit.nn.view import LayerView


@final
class TiedLora(LayerAdapter):
    """``y + s A^T B^T x`` with the factors of the embedding's adapter. Has no parameters."""

    def __init__(self, leader: Any, layer: LayerView) -> None:
        super().__init__(None, layer)
        if hasattr(leader, "lora_magnitude_vector") or layer.kind != "linear":
            what = "use_dora" if layer.kind == "linear" else type(layer.layer).__name__
            raise CapabilityError(f"ensure_weight_tying: {what} cannot follow an embedding's adapter")
        self._leader = (leader,)  # in a tuple, so that it is not registered, counted and saved twice

    @property
    @override
    def leader(self) -> Any:
        """The embedding's adapter."""
        return self._leader[0]

    @property
    def scaling(self) -> float:
        scaling: float = self.leader.scaling
        return scaling

    def factors(self) -> tuple[Tensor, Tensor]:
        """``A' (r, dim)`` and ``B' (n, r)``."""
        a, b = self.leader.factors()
        return b.T, a.T

    whole_factors = factors

    @override
    def tensors(self) -> dict[str, Tensor]:
        a, b = (factor.detach().contiguous() for factor in self.factors())
        return {"lora_A.weight": a, "lora_B.weight": b}

    @override
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over nothing: the embedding's are read, too. Raises as any adapter's."""
        for name, own in self.tensors().items():
            if name not in tensors or tensors[name].shape != own.shape:
                raise CheckpointError(f"{name}: expected shape {tuple(own.shape)}, found {sorted(tensors)}")

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        a, b = (factor.to(x.dtype) for factor in self.factors())
        dropout = self.leader.dropout if self.training else 0.0
        update = F.linear(F.linear(seeded_dropout(x, dropout) if dropout else x, a), b)
        return y + (update * self.scaling).to(y.dtype)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        changed: Tensor = self.leader.adapt_weight(weight)
        return changed

    @override
    def combine(self, adapters: Sequence[Any], weights: Sequence[float], how: Combination) -> None:
        """Follow the combination of the embedding's."""
