"""Memory for copies of large weights, in large pages where the system has them.

New memory comes in pages of 4 KiB that the system clears and maps one by one when they are first written to. For a
second copy of a model's weights that can take longer than filling them; pages of 2 MiB (`madvise(2)`, Linux) take less.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_PAGE = 1 << 21


def empty_like(tensor: Tensor) -> Tensor:
    """`torch.empty_like` for a tensor that is soon written to whole. From one large page on, on a CPU, its memory is
    its own and goes with it, and cannot be resized."""
    size = tensor.nbytes // _PAGE * _PAGE  # what is less than a page at the end is in small ones: nothing is wasted
    if not size or not tensor.is_cpu or not tensor.is_contiguous() or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty_like(tensor)
    block = mmap.mmap(-1, tensor.nbytes + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(block, dtype=torch.uint8).data_ptr() % _PAGE
    try:
        block.madvise(mmap.MADV_HUGEPAGE, start, size)
    except OSError:  # a kernel without large pages
        return torch.empty_like(tensor)
    return torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
