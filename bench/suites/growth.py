"""How a forward's time grows: with the rank, the rows, the columns, and the adapters that are active or loaded.

A figure is the slope of the logarithms: 1 is linear. What does not depend on the size has a slope of 0.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.contenders import NAMES, activate, forward, load, silent
from bench.models import build, inputs, write_lora
from bench.rows import OURS, PEFT, Goal, Row, tried
from bench.timing import Runner

MODEL = "llama-tiny"


def rows(runner: Runner) -> Iterator[Row]:
    few = runner.smoke or runner.quick
    curves: dict[str, tuple[Sequence[int], Callable[[str, int, Path], Callable[[], Any]], float]] = {
        "rank": ((8, 32) if few else (8, 32, 128), _with_rank, 1.1),
        "rows": ((2, 16) if few else (2, 8, 32), _with_rows, 1.1),
        "columns": ((16, 64) if few else (16, 64, 256), _with_columns, 1.1),
        "active adapters": ((1, 4) if few else (1, 2, 4, 8), _with_active, 1.1),
        "loaded adapters": ((1, 8) if few else (1, 8, 32), _with_loaded, 0.1),
    }
    for name, (sizes, make, goal) in curves.items():
        yield from tried(f"growth of a forward with its {name}", lambda *a: _curve(runner, *a), name, sizes, make, goal)


def _curve(runner: Runner, name: str, sizes: Sequence[int], make: Any, goal: float) -> Row:
    with tempfile.TemporaryDirectory() as directory:
        works = {(n, s): silent(make(n, s, Path(directory) / f"{s}")) for s in sizes for n in NAMES}
        times = runner.interleave({f"{n} {s}": work for (n, s), work in works.items()}, 15, warm=2)
    slopes = {n: _slope(sizes, [statistics.median(times[f"{n} {s}"]) for s in sizes]) for n in NAMES}
    title = f"growth of a forward with its {name}, {sizes[0]} to {sizes[-1]}"
    return Row.of_values(title, "", slopes[OURS], slopes[PEFT], goal=Goal(goal, "ours"), note="slope; 1 is linear")


def _slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope


def _model(name: str, root: Path, *, r: int = 8, adapters: int = 1) -> Any:
    for number in range(adapters):
        write_lora(build(MODEL, "meta"), root / f"a{number}", r=r, seed=number)
    model = load(name, build(MODEL), root / "a0", "a0")
    for number in range(1, adapters):
        model.load_adapter(root / f"a{number}", f"a{number}")
    return model.eval()


def _with_rank(name: str, size: int, root: Path) -> Callable[[], Any]:
    model = _model(name, root, r=size)
    return forward(model, inputs(model, 4, 64))


def _with_rows(name: str, size: int, root: Path) -> Callable[[], Any]:
    model = _model(name, root)
    return forward(model, inputs(model, size, 16))


def _with_columns(name: str, size: int, root: Path) -> Callable[[], Any]:
    model = _model(name, root)
    return forward(model, inputs(model, 2, size))


def _with_active(name: str, size: int, root: Path) -> Callable[[], Any]:
    model = _model(name, root, adapters=size)
    activate(model, [f"a{number}" for number in range(size)])
    return forward(model, inputs(model, 1, 16))


def _with_loaded(name: str, size: int, root: Path) -> Callable[[], Any]:
    model = _model(name, root, adapters=size)
    return forward(model, inputs(model, 1, 16))
