"""The suites, each a function from a `Runner` to rows. Imported one at a time: the first one must not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from bench.rows import Row
from bench.timing import Runner

Suite = Callable[[Runner], Iterator[Row]]

SUITES = (
    "startup",
    "injection",
    "files",
    "forward",
    "routing",
    "training",
    "methods",
    "merging",
    "memory",
    "growth",
    "sweep",
)
GPU = ("gpu", "gpu_compiled", "gpu_quantised", "gpu_rows")
EXTRA = (*GPU, "thin")
"""Suites that run only when they are named."""


def suite(name: str) -> Suite:
    return import_module(f"bench.suites.{name}").rows  # type: ignore[no-any-return]
