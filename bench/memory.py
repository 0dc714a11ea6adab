"""Bytes: kept for backward, and resident. Linux only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MIB = 2**20


def saved_bytes(work: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that ``work`` keeps alive for backward: distinct storages, less the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # alive, so that no other tensor takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    total = sum(seen.values())
    del result
    return total


class Peak:
    """The most bytes that became resident within the block, beyond those that were before it."""

    bytes: int

    def __enter__(self) -> Peak:
        self._before = resident_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return self

    def __exit__(self, *_: object) -> None:
        status = Path("/proc/self/status").read_text()
        self.bytes = int(status.partition("VmHWM:")[2].split()[0]) * 1024 - self._before


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
