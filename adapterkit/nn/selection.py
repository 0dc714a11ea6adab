"""Which adapters the next forward pass uses: one object, shared by every adapted layer of a model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapterkit.errors import StateError

BASE = "__base__"
"""In ``adapter_names``: this row goes through the base model."""


@dataclass(frozen=True)
class Routes:
    """Batch rows by adapter. Rows of no adapter go through the base model."""

    rows: Mapping[str, Tensor]  # adapter name -> indices into dimension 0, each (rows of that adapter,)
    size: int
    names: tuple[str, ...] = ()
    """What they were made from."""

    @classmethod
    def of(cls, adapter_names: Sequence[str]) -> Routes:
        """Routes for one name a row; `BASE` stands for no adapter."""
        rows: dict[str, list[int]] = {}
        for index, name in enumerate(adapter_names):
            if name != BASE:
                rows.setdefault(name, []).append(index)
        with torch.inference_mode(False):  # a later forward of the same names may be trained
            indices = {name: torch.tensor(found) for name, found in rows.items()}
        return cls(indices, len(adapter_names), tuple(adapter_names))

    def fit(self, rows: int) -> Routes:
        """The same routes for a batch in which every row stands several times in a row, as in beam search.

        Raises:
            StateError: ``rows`` is no multiple of `size`: dimension 0 of this layer's input is not the batch.
        """
        if rows == self.size:
            return self
        if self.size == 0 or rows % self.size:
            raise StateError(
                f"adapter_names has {self.size} names, and a layer's input has {rows} rows: rows must be dimension 0"
            )
        times = rows // self.size
        with torch.inference_mode(False):
            spread = torch.arange(times)
            spread_rows = {n: (r[:, None] * times + spread.to(r.device)).flatten() for n, r in self.rows.items()}
        return Routes(spread_rows, rows, self.names)


@dataclass(eq=False)
class Call:
    """What one forward had beside the active adapters, for as long as its graph is there."""

    routes: Routes | None
    inputs: dict[str, Tensor]
    is_done: bool = False
    """Whether its layers were run again in a backward."""

    def is_like(self, other: Call) -> bool:
        """Whether layers do the same in both."""
        names = [None if call.routes is None else call.routes.names for call in (self, other)]
        if names[0] != names[1] or self.inputs.keys() != other.inputs.keys():
            return False
        return all(torch.equal(given, other.inputs[name]) for name, given in self.inputs.items())


@dataclass(eq=False)
class Selection:
    """The state that every adapted layer of one model reads."""

    active: tuple[str, ...] = ()
    """Adapter names, innermost first."""

    enabled: bool = True
    routes: Routes | None = None
    """If set, takes the place of `active`: each row has its own adapter."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Inputs of the forward that adapters read, and the base model does not know; each has an entry for every row."""

    last_routes: Routes | None = None
    """Those of the last forward that had any: the next one's may be the same."""

    past: Call | None = None
    """The last forward that gradients are wanted of, if it or another one before had routes or inputs."""

    _open: list[weakref.ref[Call]] = field(default_factory=list)
    """The forwards whose layers may be run again."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no forward behind them."""
        return {**self.__dict__, "past": None, "_open": []}

    def leave(self, outputs: Any) -> None:
        """A forward is done: its routes and inputs are gone, but gradient checkpointing may ask for them (`recall`)."""
        call, self.routes = Call(self.routes, dict(self.inputs)), None
        self.inputs.clear()
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self._open = [ref for ref in self._open if (other := ref()) is not None and not other.is_done]
        node = None if not (call.inputs or call.routes or self._open) else _graph_of(outputs)
        self.past = None if node is None else call
        if node is not None:
            node.metadata["adapterkit"] = call
            self._open.append(weakref.ref(call))

    def recall(self) -> None:
        """In backward, a layer runs again: give it what it had in the forward. To be asked where there is a `past`.

        Raises:
            StateError: another forward had something else, and its backward is to come, too: no layer can tell which
                one it is run for.
        """
        call = self.past
        if call is None or torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return
        if call.is_done and self.routes is call.routes and self.inputs.keys() == call.inputs.keys():
            return
        others = [ref() for ref in self._open]
        if any(other is not None and not other.is_done and not other.is_like(call) for other in others):
            raise StateError(
                "gradient checkpointing runs layers again in backward, and several forwards with adapter_names or "
                "inputs of adapters wait for theirs: call backward after each"
            )
        call.is_done, self.routes = True, call.routes
        self.inputs.update(call.inputs)
        torch.autograd.Variable._execution_engine.queue_callback(self.forget)

    def forget(self) -> None:
        """No forward is under way."""
        self.routes = None
        self.inputs.clear()

    @contextmanager
    def narrowed(self, index: Tensor, rows: int) -> Iterator[None]:
        """Inside the block `inputs` has the entries of some rows only, of a layer's input of ``rows`` rows."""
        whole = dict(self.inputs)
        for name, given in whole.items():
            self.inputs[name] = given.repeat_interleave(rows // len(given), 0)[index.to(given.device)]
        try:
            yield
        finally:
            self.inputs.update(whole)


def require_below(size: int, name: str, values: Tensor) -> None:
    """
    Raises:
        StateError: an integer is not from 0 to ``size - 1``; where they are on another device, its indexing says so.
    """
    if torch.compiler.is_compiling() or not values.is_cpu:
        return
    if bool(((values < 0) | (values >= size)).any()):
        raise StateError(f"{name} must be from 0 to {size - 1}, and are {sorted(set(values.tolist()))}")


def _graph_of(outputs: Any) -> Any:
    """A node of the graph that a forward has left; None without one."""
    if isinstance(outputs, Tensor):
        return outputs.grad_fn
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    return next((node for node in map(_graph_of, values) if node is not None), None)
