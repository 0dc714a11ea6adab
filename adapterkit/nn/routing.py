"""Rows of many adapters computed at once: the adapters of one method act as one whose tensors have an entry a row.

A method offers this by `LayerAdapter.row_form`; what has none runs one adapter after the other, on the rows of each. So
the number of kernels depends on how many methods a batch has, and not on how many adapters. What is made of frozen
adapters is kept from one forward to the next: each row's own tensors, side by side. Whether it still holds is seen for
all layers of a model at once (`looked_at_once`), or by a layer that is called on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.forms import RowForm
from adapterkit.nn.kept import Kept, Sources, can_be_kept, is_plain_call
from adapterkit.nn.selection import Routes
from adapterkit.nn.view import LayerView

_FEW_TOKENS = 4
"""Up to so many tokens a row, products of a half type take longer than float32's on a CPU."""


class Part(NamedTuple):
    """One adapter at the layer, and the rows that it is for."""

    adapter: Any
    rows: Tensor | None  # indices, ascending; None for all rows
    turns_input: bool

    def of(self, x: Tensor) -> Tensor:
        """Its rows of ``x``."""
        return x if self.rows is None else x[self.rows]

    def put(self, changed: Tensor, x: Tensor) -> Tensor:
        """``x`` with its rows changed; unless that is all of them, they are written to ``x``."""
        return changed if self.rows is None else x.index_copy_(0, self.rows, changed)


class Stack:
    """Several adapters as one for `Part`."""

    def __init__(self, forms: Sequence[RowForm], owners: Sequence[int], dtype: torch.dtype) -> None:
        self.dtype, self.on_input, self.on_output = dtype, forms[0].on_input, forms[0].on_output
        chosen = [forms[owner].tensors for owner in owners] if len(forms) > 1 else [forms[0].tensors]
        self.tensors = [_stacked(tensors) for tensors in zip(*chosen, strict=True)]  # (rows or 1, ...)

    def adapt_input(self, x: Tensor) -> Tensor:
        assert self.on_input is not None
        return self.on_input(self._by_row(x), *self.tensors).to(x.dtype).view(x.shape)

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        if self.on_output is None:
            return y
        adapted = self.on_output(self._by_row(y), self._by_row(x), *self.tensors)
        adapted = adapted if adapted.dtype is y.dtype else adapted.to(y.dtype)
        return adapted if y.ndim == 3 else adapted.view(y.shape)

    def _by_row(self, x: Tensor) -> Tensor:
        x = x if x.ndim == 3 else x.reshape(len(x), -1, x.shape[-1])  # a call that changes nothing takes its time, too
        return x if x.dtype is self.dtype else x.to(self.dtype)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of them all; those of fewer entries, as of a lower rank, are filled up with zeros."""
    size = max(len(tensor) for tensor in tensors)
    wide = [t if len(t) == size else F.pad(t, (0, 0) * (t.ndim - 1) + (0, size - len(t))) for t in tensors]
    return torch.stack(wide)


class RowsOfAdapters(Kept):
    """The parts that a batch's rows take, for the inputs of one kind.

    Args:
        slots: what the layer has by adapter name, innermost first.
        routes: the rows' adapters.
        x: the layer's input, of as many rows.
    """

    __slots__ = ("dtype", "is_kept", "parts", "routes", "sources", "together", "was_same")

    def __init__(self, slots: Sequence[nn.ModuleDict], routes: Routes, x: Tensor) -> None:
        self.routes, self.dtype, self.was_same = routes, _dtype(x), False
        self.together: Together | None = None
        chain: list[Any] = [slot._modules[name] for slot in slots for name in routes.rows if name in slot._modules]
        watched = [*chain, *{adapter.layer.layer for adapter in chain if adapter.reads_weight}]
        self.is_kept = is_plain_call() and can_be_kept(watched, x)
        if not self.is_kept:
            self.parts = [part for slot in slots for part in self._parts(slot, x)]
            return
        self.sources = Sources(watched)
        self.sources.watch((slot._modules, name) for slot in slots for name in routes.rows)
        with torch.inference_mode(False), torch.no_grad():  # whoever uses it later may want gradients
            self.parts = [part for slot in slots for part in self._parts(slot, x)]

    def _parts(self, slot: nn.ModuleDict, x: Tensor) -> Iterable[Part]:
        """What one slot does: a part for each group of adapters that act as one, and for each that is on its own."""
        groups: dict[Any, tuple[list[str], list[RowForm]]] = {}
        for name in self.routes.rows:
            adapter: Any = slot._modules.get(name)
            if adapter is None:
                continue
            form = adapter.row_form(self.dtype) if _is_usual(adapter, x) else None
            if form is None:
                yield Part(adapter, _all_or(self.routes.rows[name].to(x.device), len(x)), _turns_input(adapter))
                continue
            members, forms = groups.setdefault(form.kind(), ([], []))
            members.append(name)
            forms.append(form)
        for members, forms in groups.values():
            rows = {row: owner for owner, name in enumerate(members) for row in self.routes.rows[name].tolist()}
            owners = [rows[row] for row in sorted(rows)]
            index = _all_or(torch.tensor(sorted(rows), device=x.device), len(x))
            yield Part(Stack(forms, owners, self.dtype), index, forms[0].on_input is not None)

    def serves_rows(self, routes: Routes, x: Tensor) -> bool:
        """Whether these are the parts of these routes and inputs."""
        return (
            self.is_kept
            and is_plain_call()
            and (routes is self.routes or (routes.names == self.routes.names and routes.size == self.routes.size))
            and _dtype(x) is self.dtype
            and self._is_same()
        )

    def _is_same(self) -> bool:
        if self.together is not None and self.together.holds:
            return True
        self.was_same = self.sources.are_same()
        return self.was_same


class Together:
    """What the layers of a model keep for the same routes, looked at in one go.

    The adapters of a layer are thousands of small objects, and between two visits of a layer the model's weights pass
    through the cache. Looking at one layer after the other waits for memory twice as long as looking at all at once.
    """

    __slots__ = ("holds", "sources")

    def __init__(self, kept: Sequence[RowsOfAdapters]) -> None:
        self.holds, self.sources = False, Sources.joined(one.sources for one in kept)
        for one in kept:
            one.together = self


@contextmanager
def looked_at_once(views: Iterable[LayerView], routes: Routes) -> Iterator[None]:
    """Inside the block, a forward of the model of these layers, what they have kept for the routes is taken to be as it
    is at the block's start."""
    held = [view.kept_rows for view in views]
    kept = [one for one in held if one is not None and one.was_same and one.routes.names is routes.names]
    if not kept:
        yield
        return
    together = kept[0].together
    if together is None or any(one.together is not together for one in kept):
        together = Together(kept)
    together.holds = together.sources.are_same()
    if not together.holds:  # the next time without the layers in which something has changed
        for one in kept:
            one.together = None
    try:
        yield
    finally:
        together.holds = False


def _is_usual(adapter: LayerAdapter, x: Tensor) -> bool:
    return adapter.layer.kind == "linear" and x.is_floating_point() and is_plain_call()


def _dtype(x: Tensor) -> torch.dtype:
    is_slow = (
        x.is_cpu and x.dtype.itemsize < 4 and x.is_floating_point() and x.numel() <= _FEW_TOKENS * len(x) * x.shape[-1]
    )
    return torch.float32 if is_slow else x.dtype


def _turns_input(adapter: Any) -> bool:
    return type(adapter).adapt_input is not LayerAdapter.adapt_input


def _all_or(index: Tensor, size: int) -> Tensor | None:
    """None in the place of all indices of ``size`` rows."""
    return None if len(index) == size else index
