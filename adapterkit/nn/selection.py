"""Which adapters the next forward pass uses: one object, shared by every adapted layer of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
        indices = {name: torch.tensor(found) for name, found in rows.items()}
        return cls(indices, len(adapter_names), tuple(adapter_names))

    def fit(self, rows: int) -> Routes:
        """The same routes for a batch in which every row stands several times in a row, as in beam search.

        Raises:
            ValueError: ``rows`` is no multiple of `size`: dimension 0 of this layer's input is not the batch.
        """
        if rows == self.size:
            return self
        if self.size == 0 or rows % self.size:
            raise ValueError(
                f"adapter_names has {self.size} names, and a layer's input has {rows} rows: rows must be dimension 0"
            )
        times = rows // self.size
        spread = torch.arange(times)
        spread_rows = {n: (r[:, None] * times + spread.to(r.device)).flatten() for n, r in self.rows.items()}
        return Routes(spread_rows, rows, self.names)


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
