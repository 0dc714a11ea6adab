"""Putting adapters into large shapes on the meta device: size, growth with layers, and the n-th adapter."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bench.contenders import NAMES, module
from bench.models import TARGETS, build
from bench.rows import OURS, PEFT, Row, tried
from bench.timing import Runner, Times

TARGET_NAMES = TARGETS["llama"]


def rows(runner: Runner) -> Iterator[Row]:
    for model in ("llama-7b",) if runner.quick else ("llama-7b", "llama-70b"):
        yield from tried(f"inject LoRA all-linear, {model}", _one, runner, model)
    yield from tried("growth of injection with the layers", _growth, runner)
    yield from tried("add many adapters", _many, runner, 12 if runner.quick else 50)


def _one(runner: Runner, model: str) -> Row:
    times = _inject(runner, model, "all-linear", rounds=7)
    note = "floor: one walk, two parameters and three modules a layer"
    return Row.of_times(f"inject LoRA all-linear, {model} on meta", times, goal=0.08, floor="floor", note=note)


def _inject(runner: Runner, model: str, targets: Any, rounds: int, **changes: Any) -> Times:
    def once(name: str) -> float:
        base = build(model, "meta", **changes)
        if name == "floor":
            return runner.timed(lambda: _least(base))
        library = module(name)
        config = library.LoraConfig(r=8, lora_alpha=12, target_modules=targets)
        with torch.device("meta"):
            return runner.timed(lambda: library.get_peft_model(base, config))

    works = {name: lambda name=name: once(name) for name in (*NAMES, "floor")}
    return runner.interleave(works, rounds)


def _least(model: nn.Module) -> None:
    """What every implementation has to do: look at the modules once, and make objects for the targets."""
    matches = re.compile(rf"(?:.*\.)?(?:{'|'.join(TARGET_NAMES)})").fullmatch
    for name, layer in model.named_modules():
        if matches(name) and isinstance(layer, nn.Linear):
            for _ in range(2):
                nn.Parameter(torch.empty(8, 8, device="meta"))
            for _ in range(3):
                nn.Module()


def _growth(runner: Runner) -> Row:
    sizes = (8, 32) if runner.quick else (8, 32, 128)
    best: dict[str, list[float]] = {name: [] for name in NAMES}
    for size in sizes:
        times = _inject(runner, "llama-7b", "all-linear", 3, num_hidden_layers=size)
        for name in NAMES:
            best[name].append(min(times[name]))
    exponents = {
        name: _slope([math.log(s) for s in sizes], [math.log(t) for t in values]) for name, values in best.items()
    }
    return Row.of_values("  growth with the number of layers (1: linear)", "", exponents[OURS], exponents[PEFT])


def _slope(x: list[float], y: list[float]) -> float:
    return statistics.linear_regression(x, y).slope


def _many(runner: Runner, last: int) -> Iterator[Row]:
    seconds = {name: _add_many(runner, name, last) for name in NAMES}
    totals = {name: 1000 * sum(values) for name, values in seconds.items()}
    goal = Row.of_times("", {OURS: [1.0]}, goal=0.025).goal
    yield Row.of_values(f"add adapters 2 to {last}, llama-7b", "ms", totals[OURS], totals[PEFT], goal=goal)
    late = {name: statistics.median(values[-5:]) / statistics.median(values[:5]) for name, values in seconds.items()}
    yield Row.of_values(f"  the last five over the first five of {last}", "x", late[OURS], late[PEFT], floor=1.0)


def _add_many(runner: Runner, name: str, last: int) -> list[float]:
    library = module(name)

    def config() -> Any:
        return library.LoraConfig(r=8, lora_alpha=12, target_modules=list(TARGET_NAMES))

    with torch.device("meta"):
        model = library.get_peft_model(build("llama-7b", "meta"), config(), adapter_name="a1")
        return [runner.timed(lambda n=n: model.add_adapter(f"a{n}", config())) for n in range(2, last + 1)]
