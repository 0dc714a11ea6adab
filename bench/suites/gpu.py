"""Tokens per second and peak memory on a GPU, in bf16, on a Llama of one billion parameters; compiled or quantised, on
some of its layers.

``python -m bench --device cuda``; with ``--smoke`` the same lines run on the CPU on a tiny model.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.contenders import forward, load, silent
from bench.memory import MIB
from bench.models import build, check_equal, inputs, quantise, tolerance, write_lora
from bench.rows import OURS, PEFT, Row, tried
from bench.suites.training import Step
from bench.timing import Runner, Times, added, added_ratio

DTYPE = torch.bfloat16
ADAPTERS = [f"a{number}" for number in range(8)]
CASES: dict[str, tuple[int, int]] = {  # how many rows of one token, for how many adapters
    "one row, one adapter": (1, 1),
    "64 rows, one adapter": (64, 1),
    "64 rows for 8 adapters": (64, 8),
}


def rows(runner: Runner, compiled: bool = False, bits: int = 0) -> Iterator[Row]:
    name = os.environ.get("BENCH_MODEL", "llama-tiny" if runner.smoke else "llama-1b")
    base = Base(name, 4 if compiled or bits else 0, bits)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for number, name in enumerate(ADAPTERS):
            write_lora(base.build("meta"), root / name, r=16, alpha=24, seed=number)
        how = "compiled" if compiled else "eager"
        yield from tried(f"decode, {base}, {how}", _decoding, runner, base, root, compiled)
        yield from tried(f"training, {base}, {how}", _training, runner, base, root, compiled)


class Base(NamedTuple):
    """A base model, or some of its layers: all of them take minutes to compile, and to quantise."""

    name: str
    layers: int
    bits: int
    """In which its weights are stored; 0 leaves them as they are."""

    def build(self, device: str) -> nn.Module:
        model = build(self.name, device, DTYPE, **({"num_hidden_layers": self.layers} if self.layers else {}))
        return quantise(model, self.bits) if self.bits and device != "meta" else model

    def __str__(self) -> str:
        name = f"{self.layers} layers of {self.name}" if self.layers else self.name
        return f"{name} in {self.bits} bits" if self.bits else name


def _training(runner: Runner, model: Base, root: Path, compiled: bool) -> Iterator[Row]:
    """One contender on the card at a time, each round on a base of its own; compiling takes too long for several."""
    shape = (1, 16) if runner.smoke else (4, 2048) if model.name == "llama-1b" else (2, 2048)
    times: Times = {name: [] for name in ("bare", PEFT, OURS)}
    peaks, losses = {}, {}
    for _ in range(1 if compiled else runner.rounds(3)):
        for name in runner.random.sample(list(times), len(times)):
            base = load(name, model.build(runner.device), root / ADAPTERS[0], trainable=True)
            step = Step(_compiled(runner, base) if compiled else base, inputs(base, *shape, runner.device))
            losses[name] = torch.stack([step().detach() for _ in range(3)])
            _reset_peak(runner)
            times[name].append(statistics.median(runner.timed(step) for _ in range(runner.rounds(12))))
            peaks[name] = _peak(runner)
            del base, step
            _empty(runner)
    check_equal("losses", {name: losses[name] for name in (PEFT, OURS)}, tolerance(DTYPE))
    title = f"training, {model} {shape[0]} x {shape[1]}, bf16, {'compiled' if compiled else 'eager'}"
    yield _speed(title, times, shape[0] * shape[1])
    added_row = added(times, OURS), added(times, PEFT), added_ratio(times, OURS, PEFT)
    yield Row("  over the bare model", "% added", *added_row)
    yield Row.of_values("  peak memory beyond weights", "MiB", peaks[OURS], peaks[PEFT], floor=peaks["bare"])


def _speed(title: str, times: Times, tokens: int) -> Row:
    """Tokens per second; the bare model's stand in the place of the floor."""
    speeds = {name: tokens / statistics.median(values) for name, values in times.items()}
    return Row.of_values(
        title, "tokens/s", speeds[OURS], speeds[PEFT], floor=speeds["bare"], note="floor: the bare model"
    )


def _decoding(runner: Runner, model: Base, root: Path, compiled: bool) -> Iterator[Row]:
    """All contenders on the card. Compiled, only one row through one adapter."""
    models = {name: _with_adapters(runner, name, model, root) for name in ("bare", PEFT, OURS)}
    for case, (count, used) in list(CASES.items())[: 1 if compiled else None]:
        words = inputs(models["bare"], count, 1, runner.device)
        routes = {"adapter_names": [ADAPTERS[i % used] for i in range(count)]} if used > 1 else {}
        works = {
            name: forward(_compiled(runner, m) if compiled else m, words if name == "bare" else words | routes)
            for name, m in models.items()
        }
        check_equal(case, {name: works[name]() for name in (PEFT, OURS)}, _tolerance(model, models["bare"]))
        times = runner.interleave({name: silent(work) for name, work in works.items()}, 30, inner=5, warm=3)
        title = f"decode, {model}, {case}, {'compiled' if compiled else 'eager'}"
        yield _speed(title, times, count)
        yield Row.of_added("  over the bare model", times)
    models.clear()
    _empty(runner)


def _tolerance(model: Base, bare: Any) -> float:
    """What rounding explains: more in layers that round inputs to 8 bits, and by the root of the layers beyond 16."""
    return tolerance(DTYPE) * (2 if model.bits == 8 else max(1.0, bare.config.num_hidden_layers / 16) ** 0.5)


def _with_adapters(runner: Runner, name: str, model: Base, root: Path) -> Any:
    wrapped = load(name, model.build(runner.device), root / ADAPTERS[0], ADAPTERS[0])
    for adapter in ADAPTERS[1:] if name != "bare" else ():
        wrapped.load_adapter(root / adapter, adapter)
    return wrapped.eval()


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
