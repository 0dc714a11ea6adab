"""Rows of many adapters computed at once, where every adapter is a low-rank change.

Few columns: all adapters' products side by side, and each row keeps its own (``n * r`` columns). Otherwise each row is
given the factors of its adapter, and a batched product takes them. Either way the number of kernels does not depend on
how many adapters a batch has: 16 rows for 16 adapters of rank 8 add a third of what they do one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterkit.nn.adapter import LayerAdapter, LowRank
from adapterkit.nn.selection import Routes

_FEW_COLUMNS = 64
_FEW_TOKENS = 4
"""Up to so many tokens a row, products of a half type take longer than float32's on a CPU."""


class RowsChange:
    """The adapters of a batch's rows, and what they were made from."""

    def __init__(self, changes: Sequence[LowRank], routes: Routes, dtype: torch.dtype, owners: Tensor) -> None:
        self.routes, self.dtype = routes, dtype
        self._sources = [
            (*c, c.outer._version, c.inner._version, c.outer.data_ptr(), c.inner.data_ptr()) for c in changes
        ]
        self._aliases = [(c.outer.detach(), c.inner.detach()) for c in changes]  # alive: nothing takes their addresses
        frozen = not any(c.outer.requires_grad or c.inner.requires_grad for c in changes)
        self.is_kept = frozen and not (torch.is_grad_enabled() or torch.is_inference_mode_enabled())
        r = max(c.inner.shape[0] for c in changes)
        inner = [F.pad(c.inner.t().to(dtype), (0, r - c.inner.shape[0])) for c in changes]  # (in, r)
        outer = [F.pad(c.outer.t().to(dtype) * c.scaling, (0, 0, 0, r - c.inner.shape[0])) for c in changes]  # (r, out)
        self.is_wide = len(changes) * r <= _FEW_COLUMNS
        if self.is_wide:
            self.inner, self.outer = torch.cat(inner, 1), torch.cat(outer)  # (in, n r), (n r, out)
            numbers = torch.arange(len(changes), device=owners.device).repeat_interleave(r)
            self.mask = (owners[:, None] == numbers).to(dtype)[:, None]  # (rows, 1, n r)
        else:
            none = [torch.zeros_like(inner[0])], [torch.zeros_like(outer[0])]  # rows of the base model
            self.inner = torch.stack(inner + none[0])[owners]  # (rows, in, r)
            self.outer = torch.stack(outer + none[1])[owners]  # (rows, r, out)

    def __reduce__(self) -> Any:
        """Copies and pickles of a layer are without it."""
        return type(None), ()

    def fits(self, changes: Sequence[LowRank], routes: Routes, dtype: torch.dtype) -> bool:
        """Whether it would be made from the same numbers again, and they are frozen."""
        if dtype is not self.dtype or routes.size != self.routes.size or routes.names != self.routes.names:
            return False
        for (outer, inner, scaling), (old_outer, old_inner, old_scaling, *state) in zip(
            changes, self._sources, strict=True
        ):
            if outer is not old_outer or inner is not old_inner or scaling != old_scaling:
                return False
            if [outer._version, inner._version, outer.data_ptr(), inner.data_ptr()] != state:
                return False
            if outer.requires_grad or inner.requires_grad:
                return False
        return True

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """``y`` and each row's own change of ``x (rows, ..., in)``."""
        rows = x.reshape(len(x), -1, x.shape[-1]).to(self.dtype)
        low = rows @ self.inner * self.mask if self.is_wide else rows.bmm(self.inner)
        update = low @ self.outer
        return y + update.view(y.shape).to(y.dtype)


def rows_change(
    parts: Sequence[tuple[LayerAdapter, Tensor]], routes: Routes, x: Tensor, kept: Any
) -> RowsChange | None:
    """What the adapters of a batch's rows do, or None where some of them do something else.

    Args:
        parts: adapters, and the rows that each is for.
        routes: the rows' adapters by name, as many as ``x`` has.
        x: the layer's input ``(rows, ..., in)``.
        kept: what an earlier forward left (`LayerView.kept`); taken if it is the same.
    """
    if not x.is_floating_point() or torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
        return None
    if not parts or torch._C._are_functorch_transforms_active() or parts[0][0].layer.kind != "linear":
        return None
    changes = []
    for part, _ in parts:
        change = part.low_rank()
        if change is None:
            return None
        changes.append(change)
    is_slow = x.is_cpu and x.dtype.itemsize < 4 and x.numel() <= _FEW_TOKENS * len(x) * x.shape[-1]
    dtype = torch.float32 if is_slow else x.dtype
    if type(kept) is RowsChange and len(kept._sources) == len(changes) and kept.fits(changes, routes, dtype):
        return kept
    owners = torch.full((len(x),), len(changes), dtype=torch.long)
    for number, (_, index) in enumerate(parts):
        owners[index] = number
    return RowsChange(changes, routes, dtype, owners.to(x.device))
