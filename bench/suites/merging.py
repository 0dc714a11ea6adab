"""Folding adapters into the base, and adapters into one another."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

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

    works = {name: lambda model=model: there_and_back(model) for name, model in models.items()}
    return Row.of_times("merge_adapter and unmerge_adapter", runner.interleave(works, 7), goal=0.45, note="ours exact")


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
    return Row.of_times(title, runner.interleave(works, 3 if kind == "svd" else 5, warm=0), goal=goal)
