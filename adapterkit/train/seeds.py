"""Seeds and the order of training examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import transformers
from torch.utils.data import Sampler


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch on all devices.

    Args:
        seed: the seed of the run.
        deterministic: refuse kernels that are not deterministic, from now on and in the whole process.
    """
    if deterministic:
        transformers.enable_full_determinism(seed)
    else:
        transformers.set_seed(seed)


class EpochSampler(Sampler[int]):
    """The order of one epoch, decided by seed and epoch alone, so that a resumed epoch goes on as it began.

    Args:
        size: number of examples.
        seed: the seed of the run.
        strategy: ``random``, ``sequential``, or ``group_by_length``: at random, but of like lengths within a batch.
        lengths: length of every example, for ``group_by_length``.
        batch_size: examples per optimizer step, for ``group_by_length``.
    """

    def __init__(
        self, size: int, seed: int, *, strategy: str = "random", lengths: Sequence[int] = (), batch_size: int = 1
    ) -> None:
        self.size, self.seed, self.strategy = size, seed, strategy
        self.lengths, self.batch_size = lengths, batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        if self.strategy == "sequential":
            return iter(range(self.size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        return iter(self._grouped(order, generator) if self.strategy == "group_by_length" else order)

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        """Sorted by length within pools of 50 batches; the batches then come in random order, the longest one first."""
        pool = 50 * self.batch_size
        batches = []
        for start in range(0, self.size, pool):
            chunk = sorted(order[start : start + pool], key=lambda index: -self.lengths[index])
            batches += [chunk[at : at + self.batch_size] for at in range(0, len(chunk), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [index for batch in batches if len(batch) < self.batch_size for index in batch]
        shuffled = [whole[index] for index in torch.randperm(len(whole), generator=generator).tolist()]
        # the longest batch first: if it does not fit into memory, that shows in the first step
        longest = max(self.lengths, default=0)
        shuffled.sort(key=lambda batch: all(self.lengths[index] < longest for index in batch))
        return [index for batch in shuffled for index in batch] + rest
