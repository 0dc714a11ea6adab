"""The factors of frozen adapters as inference wants them, kept from one forward to the next.

Adapters that are active together stand side by side along the rank, in the type that the product is computed in, and
laid out row by row: however many are active there are two products. On a CPU the layout alone makes the two products
of a batch a third faster, and those of a single token half as fast again. What is kept is one adapter's size, or that
of those which are active together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.nn.kept import KeptChain, can_be_kept

if TYPE_CHECKING:
    from adapterkit.methods.lora.adapter import LoraAdapter

_FEW_ROWS = 64
"""Up to so many rows a CPU is faster in float32: setting up a product in bf16 takes oneDNN 30 to 50 us."""


@final
class Ready(KeptChain):
    """``A^T (in, r)`` and ``B^T (r, out)`` of a chain."""

    __slots__ = ("a", "b", "dtype", "scaling")

    def __init__(self, chain: Sequence[LoraAdapter], x: Tensor) -> None:
        super().__init__(chain, None if _depends_on_rows(x) else x.dtype)
        self.dtype, self.scaling = _dtype(x), chain[0].scaling
        weighted = [adapter.lora_B.weight * (adapter.scaling / self.scaling) for adapter in chain]
        self.a = torch.cat([adapter.lora_A.weight.detach().t() for adapter in chain], 1).to(self.dtype)
        self.b = torch.cat([b.t() for b in weighted]).to(self.dtype)

    @override
    def apply(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """``W x + b + s B A x``."""
        shape, parameters = x.shape, layer._parameters
        rows = x if len(shape) == 2 else x.reshape(-1, shape[-1])  # 2-D is the shorter way through PyTorch
        y = F.linear(rows, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]
        if rows.dtype is self.dtype:
            y.addmm_(rows.mm(self.a), self.b, alpha=self.scaling)
        else:
            y.add_(rows.to(self.dtype).mm(self.a).mm(self.b), alpha=self.scaling)
        return y if len(shape) == 2 else y.view(*shape[:-1], y.shape[1])


def ready(chain: Sequence[LoraAdapter], x: Tensor) -> Ready | None:
    """The factors of ``chain`` for the input ``x``, from the last forward if they are the same; None where they cannot
    be kept."""
    view = chain[0].layer
    kept = view.kept
    if type(kept) is Ready and kept.dtype is _dtype(x) and kept.chain == chain and kept.sources.are_same():
        return kept
    if any("start_A" in adapter._buffers for adapter in chain) or not can_be_kept(chain, x):
        return None
    view.kept = made = Ready(chain, x)
    return made


def _depends_on_rows(x: Tensor) -> bool:
    return x.is_cpu and x.dtype.itemsize <= 2


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if _depends_on_rows(x) and x.numel() <= _FEW_ROWS * x.shape[-1] else x.dtype
