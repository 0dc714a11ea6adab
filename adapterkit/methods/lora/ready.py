"""The factors of frozen adapters as inference wants them, kept from one forward to the next.

Adapters that are active together stand side by side along the rank, in the type that the product is computed in, and
laid out row by row: however many are active there are two products. On a CPU the layout alone makes the two products
of a batch a third faster, and those of a single token half as fast again.

What is kept belongs to a layer and is one adapter's size, or that of those which are active together. It is made anew
when a factor is another object, lies elsewhere, was written to or has another scale; and it is not used for factors
that are trained, as some optimizers write to them without PyTorch's noticing. A write through ``.data`` to a frozen
factor is not noticed either; ``.copy_()`` under `torch.no_grad` and `load_state_dict` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from adapterkit.methods.lora.adapter import LoraAdapter

_FEW_ROWS = 64
"""Up to so many rows a CPU is faster in float32: setting up a product in bf16 takes oneDNN 30 to 50 us."""


class Ready:
    """``A^T (in, r)`` and ``B^T (r, out)`` of a chain, and what they were made from."""

    __slots__ = ("_aliases", "_scalings", "_sources", "a", "b", "dtype", "scaling")

    def __init__(self, sources: Sequence[Tensor], scalings: list[float], dtype: torch.dtype) -> None:
        self._sources = [(source, source._version, source.data_ptr()) for source in sources]
        self._aliases = [source.detach() for source in sources]  # alive, so that nothing else takes their addresses
        self._scalings, self.dtype = scalings, dtype
        self.scaling = scalings[0]
        weighted = [b * (s / self.scaling) for b, s in zip(sources[1::2], scalings, strict=True)]
        self.a = torch.cat([a.detach().t() for a in sources[::2]], 1).to(dtype)
        self.b = torch.cat([b.t() for b in weighted]).to(dtype)

    def __reduce__(self) -> Any:
        """Copies and pickles of a layer are without it."""
        return type(None), ()

    def fits(self, sources: list[Tensor], scalings: list[float], dtype: torch.dtype) -> bool:
        """Whether it would be made from the same numbers again, and they are frozen."""
        if dtype is not self.dtype or scalings != self._scalings or len(sources) != len(self._sources):
            return False
        for tensor, (source, version, address) in zip(sources, self._sources, strict=False):
            if (
                tensor is not source
                or tensor._version != version
                or tensor.data_ptr() != address
                or tensor.requires_grad
            ):
                return False
        return True

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``W x + b + s B A x``, for ``x (..., in)``."""
        shape = x.shape
        rows = x if len(shape) == 2 else x.reshape(-1, shape[-1])  # 2-D is the shorter way through PyTorch
        y = F.linear(rows, weight, bias)
        if rows.dtype is self.dtype:
            y.addmm_(rows.mm(self.a), self.b, alpha=self.scaling)
        else:
            y.add_(rows.to(self.dtype).mm(self.a).mm(self.b), alpha=self.scaling)
        return y if len(shape) == 2 else y.view(*shape[:-1], y.shape[1])


def ready(chain: Sequence[LoraAdapter], x: Tensor) -> Ready | None:
    """The factors of ``chain`` for the input ``x``, from the last forward if they are the same; None where they cannot
    be kept."""
    sources: list[Tensor] = []
    scalings: list[float] = []
    for adapter in chain:
        held: Any = adapter._modules  # past nn.Module.__getattr__, which costs as much as a small kernel
        sources += held["lora_A"]._parameters["weight"], held["lora_B"]._parameters["weight"]
        scalings.append(adapter.scaling)
    dtype, view = _dtype(x), chain[0].layer
    kept: Any = view.kept
    if type(kept) is Ready and kept.fits(sources, scalings, dtype):
        return kept
    if any("start_A" in adapter._buffers for adapter in chain):
        return None
    if not _can_be_kept(sources, x):
        return None
    view.kept = made = Ready(sources, scalings, dtype)
    return made


def _dtype(x: Tensor) -> torch.dtype:
    dtype = x.dtype
    if dtype is torch.float32 or not x.is_cpu or x.numel() > _FEW_ROWS * x.shape[-1] or dtype.itemsize > 2:
        return dtype
    return torch.float32


def _can_be_kept(sources: Sequence[Tensor], x: Tensor) -> bool:
    """Whether writing to the factors is noticed, and a later forward can use what this one makes."""
    if type(x) not in (Tensor, nn.Parameter) or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return not any(s.requires_grad or s.is_inference() or type(s) is not nn.Parameter for s in sources)
