"""LoRA in inference: how the active adapters of a layer are computed, kept from one forward to the next.

A single adapter in the type of its inputs is read as it is. Others are made ready: adapters that are active together
stand side by side along the rank, in the type that the product is computed in, so that however many are active there
are two products. What that keeps is their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.nn.kept import KeptChain, Sources, can_be_kept
from adapterkit.nn.low_rank import product_added, product_beside, type_of_products

if TYPE_CHECKING:
    from adapterkit.methods.lora.adapter import LoraAdapter


@final
class Direct(KeptChain):
    """A single adapter in the type of its inputs: its factors are read off it in every forward.

    Nothing is made of them, so they may change and be trained. What is kept is where they are.
    """

    __slots__ = ("a", "b", "own")

    def __init__(self, adapter: LoraAdapter, x: Tensor) -> None:
        super().__init__([adapter], x.dtype)
        held: Any = adapter._modules
        self.own: dict[str, Any] = adapter.__dict__
        self.a, self.b = held["lora_A"]._parameters, held["lora_B"]._parameters

    @override
    def holds(self) -> bool:
        own, a, b = self.own, self.a.get("weight"), self.b.get("weight")
        if own["_buffers"] or (own["dropout"] and own["training"]):
            return False
        return a is not None and b is not None and a.dtype is b.dtype is self.takes

    @override
    def apply(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """``W x + b + s B A x``."""
        base: Any = layer._parameters
        return product_beside(x, base["weight"], base["bias"], *self.factors())

    @override
    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """``y + s B A x``."""
        return product_added(y, x, *self.factors())

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """``A (r, in)``, ``B (out, r)`` and their scale."""
        return self.a["weight"], self.b["weight"], self.own["scaling"]


@final
class Ready(KeptChain):
    """The factors ``A (R, in)`` and ``s B (out, R)`` of a chain, side by side and cast."""

    __slots__ = ("a", "b", "dtype", "sources", "turned")

    def __init__(self, chain: Sequence[LoraAdapter], x: Tensor) -> None:
        self.dtype = type_of_products(x)
        super().__init__(chain, x.dtype, self.dtype if _depends_on_rows(x) else None)
        self.sources = Sources(chain)
        self.a = torch.cat([adapter.lora_A.weight.detach() for adapter in chain]).to(self.dtype)
        weights = [(adapter.lora_B.weight, adapter.scaling) for adapter in chain]
        exact = torch.promote_types(weights[0][0].dtype, torch.float32)
        b = torch.cat([weight.to(exact) * scaling for weight, scaling in weights], 1).to(self.dtype)
        self.b = b.t().contiguous().t() if b.is_cuda else b  # a CPU reads rows from memory, a GPU computes with columns
        self.turned = self.a.t(), self.b.t()  # a view takes a GPU's host a tenth of a product's start

    @override
    def holds(self) -> bool:
        for adapter in self.chain:
            if adapter._buffers:  # what a start takes away again may be there later than the factors
                return False
        return self.sources.are_same()

    @override
    def apply(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """``W x + b + s B A x``."""
        base: Any = layer._parameters
        if x.dtype is not self.dtype:
            change = F.linear(F.linear(x.to(self.dtype), self.a), self.b)
            return F.linear(x, base["weight"], base["bias"]).add_(change)
        shape, (a_t, b_t) = x.shape, self.turned
        if x.is_cpu or x.numel() == shape[-1]:
            return product_beside(x, base["weight"], base["bias"], self.a, self.b, 1.0)
        rows = x.reshape(-1, shape[-1])
        y = F.linear(rows, base["weight"], base["bias"]).addmm_(rows.mm(a_t), b_t)
        return y.view(*shape[:-1], -1)

    @override
    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """``y + s B A x``."""
        return product_added(y, x, *self.factors())

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """``A (R, in)``, ``B (out, R)`` and their scale."""
        return self.a, self.b, 1.0


def ready(chain: Sequence[LoraAdapter], x: Tensor) -> Direct | Ready | None:
    """How ``chain`` is computed for the input ``x``, from the last forward if it is the same; None where nothing can be
    kept."""
    view = chain[0].layer
    if any(adapter._buffers for adapter in chain) or type(x) not in (Tensor, nn.Parameter):
        return None
    if len(chain) == 1 and not _depends_on_rows(x):
        direct = Direct(chain[0], x)
        if direct.holds():
            view.kept = direct
            return direct
    kept = view.kept
    if type(kept) is Ready and kept.dtype is type_of_products(x) and kept.chain == chain and kept.holds():
        return kept
    view.kept = made = Ready(chain, x) if can_be_kept(chain, x) else None
    return made


def _depends_on_rows(x: Tensor) -> bool:
    return x.is_cpu and x.dtype.itemsize <= 2
