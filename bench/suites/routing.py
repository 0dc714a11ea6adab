"""One batch whose rows use different adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contenders import forward, load_all, module, silent
from bench.models import build, check_equal, inputs, output, tolerance, write_lora
from bench.rows import OURS, Goal, Row, tried
from bench.suites.methods import METHODS, Methods, chosen, config_of
from bench.timing import Runner, Times, added, added_ratio

MODEL = "bert-base"
ONLY_HERE: Methods = {
    "IA3": ("IA3Config", {"feedforward_modules": []}, None),
    "Poly": ("PolyConfig", {"r": 8, "n_tasks": 4, "n_skills": 4}, None),
}
"""Beside those whose training is measured."""


def rows(runner: Runner) -> Iterator[Row]:
    count = 2 if runner.smoke else 16 if runner.quick else 64
    with tempfile.TemporaryDirectory() as directory:
        models = _models(Path(directory), count, {"num_hidden_layers": 3} if runner.quick else {})
        for columns in (1, 16):
            for used in (1, count):
                yield from tried(f"{count} rows for {used} adapters", _row, runner, models, count, used, columns)
    for method, (class_name, fields, _) in chosen(runner, METHODS | ONLY_HERE).items():
        yield from tried(f"rows by adapter, {method}", _method, method, runner, class_name, fields, count)


def _models(root: Path, count: int, changes: dict[str, Any]) -> dict[str, Any]:
    shape = build(MODEL, "meta", **changes)
    for number in range(count):
        write_lora(shape, root / f"a{number}", seed=number)
    models = load_all(MODEL, root / "a0", "a0", **changes)
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


def _method(method: str, runner: Runner, class_name: str, fields: dict[str, Any], count: int) -> Row | None:
    """What rows of so many adapters cost, over what one adapter does on the same rows. PEFT routes LoRA alone."""
    config = config_of(OURS, class_name, fields)
    if config is None:
        return None
    bare = build(MODEL, num_hidden_layers=2).requires_grad_(False)
    words, names = inputs(bare, count, 1), [f"a{number}" for number in range(count)]
    model = _adapted(config, names)
    asked = words | ({"task_ids": torch.arange(count) % config.n_tasks} if "task_ids" in config.forward_inputs else {})
    works = {"bare": forward(bare, words), OURS: _routed(model, asked, names), "single": forward(model, asked)}
    check_equal(method, {name: works[name]()[:1] for name in (OURS, "single")}, tolerance(torch.float32))
    times = runner.interleave({name: silent(work) for name, work in works.items()}, 40, warm=2)
    title = f"{count} rows for {count} adapters, {method}, over one adapter"
    return Row(title, "x", added_ratio(times, OURS, "single"), goal=Goal(2, "ours"), note=_shares(times))


def _shares(times: Times) -> str:
    return f"{added(times, OURS):.0f} and {added(times, 'single'):.0f} % added; 2 layers of {MODEL}"


def _adapted(config: Any, names: list[str]) -> Any:
    """Frozen adapters that do something, the first one active."""
    model = module(OURS).get_peft_model(build(MODEL, num_hidden_layers=2), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name in names:
            for _, part in model.base_model.parts(name):
                for parameter in part.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.requires_grad_(False).eval()
