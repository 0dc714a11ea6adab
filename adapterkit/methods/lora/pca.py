"""Principal directions of rows that arrive in batches (Ross et al., 2008, https://doi.org/10.1007/s11263-007-0075-7)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

_ROUNDS, _SEED = 4, 42  # of the randomised decomposition


@final
class Directions:
    """The ``count`` leading principal directions of all rows seen so far, and how settled each is.

    Args:
        count: how many.
        tau: a direction is settled when a batch leaves it with at least this cosine to what it was.
    """

    def __init__(self, count: int, tau: float) -> None:
        self.count, self.tau = count, tau
        self.rows = 0
        self.directions: Tensor | None = None  # (count, features)
        self.strengths = torch.zeros(count)  # singular values
        self.mean = torch.zeros(())  # (features,), float64
        self.spread = torch.zeros(())  # (features,): sum of squared differences from the mean, float64
        self.settled = torch.zeros(count, dtype=torch.bool)

    @property
    def shares(self) -> Tensor:
        """The part of the rows' variance that each direction explains, ``(count,)``."""
        return self.strengths**2 / self.spread.sum()

    def update(self, rows: Tensor) -> None:
        """See more rows ``(n, features)``; fewer than ``count`` are passed over."""
        if len(rows) < self.count:
            return
        rows, before = rows.float(), self.directions
        centred = self._centred(rows)
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            _, s, v = torch.svd_lowrank(centred, q=min(2 * self.count, *centred.shape), niter=_ROUNDS)
        directions = v.T[: self.count]
        largest = directions.abs().argmax(dim=1, keepdim=True)
        directions = directions * directions.gather(1, largest).sign()  # a fixed sign, to compare with the next
        self.directions, self.strengths = directions, s[: self.count]
        if before is not None:
            self.settled = torch.nn.functional.cosine_similarity(directions, before) >= self.tau

    def _centred(self, rows: Tensor) -> Tensor:
        """Rows whose directions are those of everything seen, the given ones included."""
        n, seen = len(rows), self.rows
        mean = rows.mean(dim=0, dtype=torch.float64)
        own = rows - mean.float()
        spread = (rows.double() - mean).square().sum(dim=0)
        self.rows = n + seen
        if self.directions is None:
            self.mean, self.spread = mean, spread
            return own
        shift = self.mean - mean
        stacked = [self.strengths[:, None] * self.directions, own, (seen / self.rows * n) ** 0.5 * shift[None]]
        self.spread = self.spread + spread + seen * n / self.rows * shift.square()
        self.mean = self.mean + (mean - self.mean) * n / self.rows
        return torch.vstack(stacked)  # in float64, as the mean is
