"""Rows of many LoRA adapters on a GPU, a token each, layer by layer: one Triton kernel against `torch.bmm` and grouped
products. ``python -m bench --device cuda --suite gpu_rows``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from adapterkit.nn.forms import row_kernels
from bench.models import check_equal
from bench.rows import OURS, Row
from bench.timing import Runner

RANK = 16
SIZES = ((2048, 2048), (2048, 8192), (8192, 2048))
BATCHES = ((1, 1), (16, 16), (64, 8), (64, 64), (256, 64))
"""Rows, and how many adapters they are for."""

TIMES = 50
"""How often a graph does the work."""


def rows(runner: Runner) -> Iterator[Row]:
    if not runner.cuda:
        return  # Triton has no other device here
    for count, adapters in BATCHES:
        for size in SIZES:
            yield from _row(runner, count, adapters, *size)


def _row(runner: Runner, count: int, adapters: int, wide: int, out: int) -> Iterator[Row]:
    works = _works(count, adapters, wide, out)
    check_equal("rows", {name: work().clone() for name, work in works.items()}, 1e-2)
    times = runner.interleave({name: _many(work) for name, work in works.items()}, 20, warm=2)
    title = f"{count} rows for {adapters} adapters, {wide} to {out}, in a graph"
    medians = {name: 1e6 * statistics.median(values) / TIMES for name, values in times.items()}
    for other in (name for name in works if name != OURS):
        yield Row.of_values(title, "us", medians[OURS], medians[other], note=f"not PEFT: {other}")


def _many(work: Callable[[], Tensor]) -> Callable[[], None]:
    """The work many times over as the GPU alone takes it: a graph that the host starts once."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(TIMES):
            work()
    return graph.replay


def _works(count: int, adapters: int, wide: int, out: int) -> dict[str, Callable[[], Tensor]]:
    """Each writes the rows' products to the same zeros."""
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) / 8

    a, b, x, y = drawn(adapters, RANK, wide), drawn(adapters, RANK, out), drawn(count, 1, wide), drawn(count, 1, out)
    owners = torch.arange(count, device="cuda") * adapters // count
    own_a, own_b, turned = a[owners], b[owners], a.mT.contiguous()
    ends = torch.bincount(owners, minlength=adapters).cumsum(0).int()
    kernels = row_kernels()
    assert kernels is not None

    def grouped() -> Tensor:
        low = torch._grouped_mm(x[:, 0], turned, offs=ends)
        return y.zero_().add_(torch._grouped_mm(low, b, offs=ends)[:, None])

    return {
        OURS: lambda: kernels.add_rows(y.zero_(), x, own_a, own_b),
        "two of torch.bmm": lambda: y.zero_().baddbmm_(own_a.bmm(x.mT).mT, own_b),
        "two of torch._grouped_mm": grouped,
    }
