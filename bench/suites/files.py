"""Loading, saving, and switching among many loaded adapters."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.contenders import NAMES, forward, load, load_all, module, silent
from bench.models import build, check_equal, inputs, write_lora
from bench.rows import OURS, PEFT, Goal, Row, tried
from bench.timing import Runner, Times

MODEL = "bert-base"


def rows(runner: Runner) -> Iterator[Row]:
    count = 3 if runner.smoke else 12 if runner.quick else 100
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        shape = build(MODEL, "meta")
        for number in range(count):
            write_lora(shape, root / f"a{number}", seed=number)
        yield from tried("from_pretrained and save_pretrained", _one, runner, root)
        yield from tried("many adapters loaded", _many, runner, root, count)


def _one(runner: Runner, root: Path) -> Iterator[Row]:
    def from_pretrained(name: str) -> float:
        base, library = build(MODEL), module(name)
        return runner.timed(lambda: library.PeftModel.from_pretrained(base, root / "a0"))

    works: dict[str, Any] = {name: lambda name=name: from_pretrained(name) for name in NAMES}
    works["floor"] = lambda: runner.timed(lambda: _read(root / "a0" / "adapter_model.safetensors"))
    note = "floor: read the file, view its tensors"
    times = runner.interleave(works, 7)
    yield Row.of_times(f"from_pretrained, {MODEL} all-linear", times, goal=0.10, floor="floor", note=note)

    models = load_all(MODEL, root / "a0", bare=False)
    _check_files(models, root)
    content = (root / "a0" / "adapter_model.safetensors").read_bytes()
    works = {name: silent(lambda name=name: models[name].save_pretrained(root / f"out-{name}")) for name in NAMES}
    works["floor"] = lambda: runner.timed(lambda: (root / "copy").write_bytes(content))
    yield Row.of_times(
        "save_pretrained", runner.interleave(works, 9), goal=0.30, floor="floor", note="floor: write the bytes"
    )


def _check_files(models: dict[str, Any], root: Path) -> None:
    """What one library wrote, the other one reads, with the same outputs."""
    words = inputs(models[PEFT], 2, 8)
    check_equal("from_pretrained", {name: forward(model, words)() for name, model in models.items()}, 1e-4)
    outputs = {}
    for writer, reader in ((PEFT, OURS), (OURS, PEFT)):
        models[writer].save_pretrained(root / f"from-{writer}")
        outputs[writer] = forward(load(reader, build(MODEL), root / f"from-{writer}"), words)()
    check_equal("files read by the other library", outputs, 1e-4)


def _read(path: Path) -> None:
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + header])
    entries.pop("__metadata__", None)
    values = torch.frombuffer(content, dtype=torch.uint8)[8 + header :]
    for entry in entries.values():
        start, end = entry["data_offsets"]
        values[start:end].view(torch.float32).view(entry["shape"])


def _many(runner: Runner, root: Path, count: int) -> Iterator[Row]:
    models, seconds = {}, {}
    for name in NAMES:
        models[name] = load(name, build(MODEL), root / "a0", "a0")
        seconds[name] = [
            runner.timed(lambda n=n, model=models[name]: model.load_adapter(root / f"a{n}", f"a{n}"))
            for n in range(1, count)
        ]
    totals = {name: 1000 * sum(values) for name, values in seconds.items()}
    yield Row.of_values(f"load adapters 2 to {count}", "ms", totals[OURS], totals[PEFT], goal=Goal(0.015))
    late = {name: statistics.median(values[-5:]) / statistics.median(values[:5]) for name, values in seconds.items()}
    yield Row.of_values("  the last five over the first five", "x", late[OURS], late[PEFT], floor=1.0)
    words = inputs(models[PEFT], 2, 8)
    for model in models.values():
        model.set_adapter("a1")
    check_equal("set_adapter", {name: forward(model, words)() for name, model in models.items()}, 1e-4)
    yield Row.of_times(f"save one of {count}", _save_one(runner, models, root), goal=0.015)
    yield Row.of_times(f"set_adapter, {count} loaded", _switch(runner, models, count), goal=0.001)
    yield Row.of_times(f"disable_adapter in and out, {count} loaded", _disable(runner, models), goal=0.001)


def _save_one(runner: Runner, models: dict[str, Any], root: Path) -> Times:
    def save(name: str) -> None:
        models[name].save_pretrained(root / f"one-{name}", selected_adapters=["a1"])

    return runner.interleave({name: lambda name=name: save(name) for name in models}, 5)


def _switch(runner: Runner, models: dict[str, Any], count: int) -> Times:
    turn = dict.fromkeys(models, 0)

    def switch(name: str) -> None:
        turn[name] = (turn[name] + 1) % count
        models[name].set_adapter(f"a{turn[name]}")

    return runner.interleave({name: lambda name=name: switch(name) for name in models}, 15, inner=3)


def _disable(runner: Runner, models: dict[str, Any]) -> Times:
    def disable(model: Any) -> None:
        with model.disable_adapter():
            pass

    return runner.interleave({name: lambda model=model: disable(model) for name, model in models.items()}, 9)
