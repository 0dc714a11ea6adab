"""Folding adapters into the base, and adapters into one another."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from adapterkit.nn import memory
from bench.contenders import NAMES, forward, load, load_all, silent
from bench.models import build, check_equal, inputs, targets_of, tolerance, write_lora
from bench.rows import Row, tried
from bench.timing import Runner

MODEL = "bert-base"
GOALS = {"linear": 0.08, "cat": 0.05, "svd": 0.002}


def rows(runner: Runner) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        size = {"num_hidden_layers": 3} if runner.quick else {}
        for dtype, goal in ((torch.float32, 0.40), (torch.bfloat16, 0.35)):
            yield from tried(f"merge_and_unload, {dtype}", _merge, runner, root, dtype, goal, size)
        yield from tried("merge_adapter and unmerge_adapter", _merge_and_back, runner, root, size)
        for kind, goal in GOALS.items():
            yield from tried(f"add_weighted_adapter, {kind}", _weighted, runner, root, kind, goal, size)


def _merge(runner: Runner, root: Path, dtype: torch.dtype, goal: float, size: dict[str, Any]) -> Row:
    write_lora(build(MODEL, "meta", **size), root / "a0")
    weights = [layer.weight.data for _, layer in targets_of(build(MODEL, dtype=dtype, **size))]

    def merged(name: str) -> Any:
        return load(name, build(MODEL, dtype=dtype, **size), root / "a0").merge_and_unload()

    def timed(name: str) -> float:
        model = load(name, build(MODEL, dtype=dtype, **size), root / "a0")
        return runner.timed(model.merge_and_unload)

    words = inputs(build(MODEL, "meta"), 2, 16)
    name = f"merge_and_unload, {MODEL}, {str(dtype).removeprefix('torch.')}"
    check_equal(name, {key: forward(merged(key), words)() for key in NAMES}, tolerance(dtype))
    works: dict[str, Any] = {key: lambda key=key: timed(key) for key in NAMES}
    works["floor"] = silent(lambda: [weight.add_(1.0) for weight in weights])
    note = "floor: read and write the weights once"
    return Row.of_times(name, runner.interleave(works, 7), goal=goal, floor="floor", note=note)


def _merge_and_back(runner: Runner, root: Path, size: dict[str, Any]) -> Row:
    models = load_all(MODEL, root / "a0", "a0", bare=False, **size)

    def there_and_back(model: Any) -> None:
        model.merge_adapter(["a0"])
        model.unmerge_adapter()

    works: dict[str, Any] = {name: lambda model=model: there_and_back(model) for name, model in models.items()}
    weights = [layer.weight.data for _, layer in targets_of(build(MODEL, **size))]
    works["floor"] = silent(lambda: [memory.empty_like(weight).copy_(weight) for weight in weights])
    times = runner.interleave(works, 7)
    note = "ours exact; floor: a second copy of the weights"
    return Row.of_times("merge_adapter and unmerge_adapter", times, goal=0.45, floor="floor", note=note)


def _weighted(runner: Runner, root: Path, kind: str, goal: float, size: dict[str, Any]) -> Row:
    """Of three adapters; by singular values only one block, which takes PEFT seconds."""
    changes = {"num_hidden_layers": 1} if kind == "svd" else size
    names = ["a0", "a1", "a2"]
    for number, name in enumerate(names):
        write_lora(build(MODEL, "meta", **changes), root / kind / name, seed=number)
    models = load_all(MODEL, root / kind / "a0", "a0", bare=False, **changes)
    for model in models.values():
        for name in names[1:]:
            model.load_adapter(root / kind / name, name)
    numbers = itertools.count()

    def combine(model: Any) -> str:
        new = f"w{next(numbers)}"
        model.add_weighted_adapter(names, [0.5, 0.3, 0.2], new, combination_type=kind)
        return new

    outputs = {}
    words = inputs(models["peft"], 2, 16)
    for key, model in models.items():
        model.set_adapter(combine(model))
        outputs[key] = forward(model.eval(), words)()
    title = f"add_weighted_adapter, {kind}{', one layer' if kind == 'svd' else ''}"
    check_equal(title, outputs, 1e-3)
    works = {key: silent(lambda model=model: combine(model)) for key, model in models.items()}
    layers = _factors([root / kind / name for name in names])
    kept: list[Any] = []  # as in the models: every combination is written to new memory
    works["floor"] = silent(lambda: kept.append([_COMBINED[kind](*factors) for factors in layers]))
    times = runner.interleave(works, 3 if kind == "svd" else 5, warm=0)
    return Row.of_times(title, times, goal=goal, floor="floor", note="floor: the factors alone, in new memory")


def _factors(directories: list[Path]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The adapters' A and their B, layer by layer."""
    states = [load_file(directory / "adapter_model.safetensors") for directory in directories]
    inner = [key for key in states[0] if ".lora_A." in key]
    return [([s[key] for s in states], [s[key.replace(".lora_A.", ".lora_B.")] for s in states]) for key in inner]


def _sums(inner: list[Tensor], outer: list[Tensor]) -> Any:
    return [(0.7 * one).add_(two, alpha=0.5).add_(three, alpha=0.4) for one, two, three in (inner, outer)]


def _side_by_side(inner: list[Tensor], outer: list[Tensor]) -> Any:
    return torch.cat([0.5 * factor for factor in inner]), torch.cat(outer, 1)


def _truncated(inner: list[Tensor], outer: list[Tensor]) -> Any:
    left, right = torch.linalg.qr(torch.cat(outer, 1)), torch.linalg.qr(torch.cat(inner).T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T)
    return left.Q @ (u * s)[:, :8], vh[:8] @ right.Q.T


_COMBINED: dict[str, Callable[..., Any]] = {"linear": _sums, "cat": _side_by_side, "svd": _truncated}
"""The least that a combination of three adapters takes."""
