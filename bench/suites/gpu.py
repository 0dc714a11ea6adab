"""Tokens per second and peak memory on a GPU, in bf16, on a Llama of one billion parameters.

``python -m bench --device cuda``; with ``--smoke`` the same lines run on the CPU on a tiny model.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.contenders import load
from bench.memory import MIB
from bench.models import build, check_equal, inputs, output, tolerance, write_lora
from bench.rows import OURS, PEFT, Row
from bench.suites.training import Step
from bench.timing import Runner, Times, added, added_ratio

DTYPE = torch.bfloat16
ADAPTERS = [f"a{number}" for number in range(8)]


def rows(runner: Runner) -> Iterator[Row]:
    model = os.environ.get("BENCH_MODEL", "llama-tiny" if runner.smoke else "llama-1b")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for number, name in enumerate(ADAPTERS):
            write_lora(build(model, "meta"), root / name, r=16, alpha=24, seed=number)
        for compiled in (False, True):
            yield from _training(runner, model, root, compiled=compiled)
        yield from _decoding(runner, model, root)


def _training(runner: Runner, model: str, root: Path, *, compiled: bool) -> Iterator[Row]:
    """One contender on the card at a time, each round on a base of its own."""
    shape = (1, 16) if runner.smoke else (4, 2048)
    times: Times = {name: [] for name in ("bare", PEFT, OURS)}
    peaks, losses = {}, {}
    for _ in range(runner.rounds(4)):
        for name in runner.random.sample(list(times), len(times)):
            base = load(name, build(model, runner.device, DTYPE), root / ADAPTERS[0], trainable=True)
            step = Step(_compiled(runner, base) if compiled else base, inputs(base, *shape, runner.device))
            losses[name] = torch.stack([step().detach() for _ in range(3)])
            _reset_peak(runner)
            times[name].append(statistics.median(runner.timed(step) for _ in range(runner.rounds(10))))
            peaks[name] = _peak(runner)
            del base, step
            _empty(runner)
    check_equal("losses", {name: losses[name] for name in (PEFT, OURS)}, tolerance(DTYPE))
    title = f"{model} {shape[0]} x {shape[1]}, bf16, {'compiled' if compiled else 'eager'}"
    tokens = {name: shape[0] * shape[1] / statistics.median(values) for name, values in times.items()}
    yield Row.of_values(f"training, {title}", "tokens/s", tokens[OURS], tokens[PEFT], floor=tokens["bare"])
    added_row = added(times, OURS), added(times, PEFT), added_ratio(times, OURS, PEFT)
    yield Row("  over the bare model", "% added", *added_row)
    yield Row.of_values("  peak memory beyond weights", "MiB", peaks[OURS], peaks[PEFT], floor=peaks["bare"])


def _decoding(runner: Runner, model: str, root: Path) -> Iterator[Row]:
    cases = {"one row, one adapter": (1, None), "64 rows, one adapter": (64, None), "64 rows for 8 adapters": (64, 8)}
    times: dict[str, Times] = {case: {} for case in cases}
    for name in ("bare", PEFT, OURS):
        wrapped = load(name, build(model, runner.device, DTYPE), root / ADAPTERS[0], ADAPTERS[0])
        for adapter in ADAPTERS[1:] if name != "bare" else ():
            wrapped.load_adapter(root / adapter, adapter)
        wrapped.eval()
        for case, (rows, used) in cases.items():
            routes = {"adapter_names": [ADAPTERS[i % used] for i in range(rows)]} if used and name != "bare" else {}
            run = _decode(wrapped, inputs(wrapped, rows, 1, runner.device), routes)
            times[case][name] = runner.interleave({name: run}, 30, inner=5, warm=3)[name]
        del wrapped
        _empty(runner)
    for case, found in times.items():
        yield Row.of_added(f"decode, {model}, {case}", found)


def _decode(model: Any, words: dict[str, Any], routes: dict[str, Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            output(model(**words, **routes))

    return run


def _reset_peak(runner: Runner) -> None:
    if runner.cuda:
        torch.cuda.reset_peak_memory_stats()


def _peak(runner: Runner) -> float:
    if not runner.cuda:
        return float("nan")
    return (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / MIB


def _empty(runner: Runner) -> None:
    gc.collect()
    if runner.cuda:
        torch.cuda.empty_cache()


def _compiled(runner: Runner, model: Any) -> Any:
    return torch.compile(model, backend="eager" if runner.smoke else "inductor")
