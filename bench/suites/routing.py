"""One batch whose rows use different adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contenders import forward, load_all, silent
from bench.models import build, check_equal, inputs, output, tolerance, write_lora
from bench.rows import Goal, Row, tried
from bench.timing import Runner

MODEL = "bert-base"


def rows(runner: Runner) -> Iterator[Row]:
    count = 2 if runner.smoke else 16 if runner.quick else 64
    with tempfile.TemporaryDirectory() as directory:
        models = _models(Path(directory), count)
        for columns in (1, 16):
            for used in (1, count):
                yield from tried(f"{count} rows for {used} adapters", _row, runner, models, count, used, columns)


def _models(root: Path, count: int) -> dict[str, Any]:
    shape = build(MODEL, "meta")
    for number in range(count):
        write_lora(shape, root / f"a{number}", seed=number)
    models = load_all(MODEL, root / "a0", "a0")
    for name in ("peft", "adapterkit"):
        for number in range(1, count):
            models[name].load_adapter(root / f"a{number}", f"a{number}")
        models[name].eval()
    return models


def _row(runner: Runner, models: dict[str, Any], rows: int, used: int, columns: int) -> Row:
    words = inputs(models["bare"], rows, columns)
    names = [f"a{number % used}" for number in range(rows)]
    runner.random.shuffle(names)
    works = {
        name: forward(model, words) if name == "bare" else _routed(model, words, names)
        for name, model in models.items()
    }
    title = f"{rows} rows for {used} adapters, {columns} token{'s' if columns > 1 else ''} each"
    outputs = {name: work() for name, work in works.items() if name != "bare"}
    check_equal(title, outputs, tolerance(torch.float32))
    times = runner.interleave({name: silent(work) for name, work in works.items()}, 12)
    return Row.of_added(title, times, Goal(12, "ours") if used == rows and columns == 1 else None)


def _routed(model: Any, words: Any, names: list[str]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return output(model(**words, adapter_names=names))

    return run
