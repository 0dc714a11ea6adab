"""A training step, and what is kept for its backward."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contenders import NAMES, load_all, silent
from bench.memory import MIB, saved_bytes
from bench.models import build, check_equal, inputs, loss, tolerance, write_lora
from bench.rows import OURS, PEFT, Goal, Row, tried
from bench.timing import Runner, Times, added, added_ratio


@dataclass(frozen=True)
class Setting:
    """One way to train; the goals are ratios to PEFT's share over the bare model."""

    name: str
    time: float | None
    memory: float | None
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    dropout: float = 0.0


SETTINGS = (
    Setting("float32", 0.5, None),
    Setting("bf16 base", 0.15, 0.34, torch.bfloat16),
    Setting("bf16 autocast", 0.4, 0.65, torch.bfloat16, autocast=True),
    Setting("float32, dropout 0.1", None, 0.36, dropout=0.1),
)


def rows(runner: Runner) -> Iterator[Row]:
    for setting in SETTINGS:
        yield from tried(f"training step, {setting.name}", _setting, runner, setting)
    for dtype, columns, goal in ((torch.float32, 32, 0.85), (torch.bfloat16, 16, 1.0)):
        yield from tried("training step, llama-tiny", _short, runner, dtype, columns, goal)


def _setting(runner: Runner, setting: Setting) -> Iterator[Row]:
    model, shape = "bert-base", (8, 128)
    changes: dict[str, Any] = {}
    if runner.quick:
        shape, changes = (4, 64), {"num_hidden_layers": 3}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "a"
        write_lora(build(model, "meta", **changes), root, dropout=setting.dropout)
        models = load_all(model, root, dtype=setting.dtype, trainable=True, **changes)
    words = inputs(models["bare"], *shape)
    steps = {name: Step(model, words, autocast=setting.autocast) for name, model in models.items()}
    if not setting.dropout:
        _check_losses(setting, steps)
    kept = {name: saved_bytes(step.loss, step.model) / MIB for name, step in steps.items()}
    times = runner.interleave({name: silent(step) for name, step in steps.items()}, 15)
    yield _time_row(setting, times, f"{shape[0]} x {shape[1]}")
    extra = {name: kept[name] - kept["bare"] for name in NAMES}
    goal = None if setting.memory is None else Goal(setting.memory)
    yield Row.of_values(
        f"  kept for backward by the adapters, {setting.name}", "MiB", extra[OURS], extra[PEFT], goal=goal
    )


def _short(runner: Runner, dtype: torch.dtype, columns: int, goal: float) -> Row:
    """The whole step on a row of few tokens, where starting kernels takes longer than computing them."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "a"
        write_lora(build("llama-tiny", "meta"), root)
        models = load_all("llama-tiny", root, dtype=dtype, trainable=True, bare=False)
    steps = {name: Step(model, inputs(model, 1, columns)) for name, model in models.items()}
    losses = {name: torch.stack([step().detach() for _ in range(3)]) for name, step in steps.items()}
    check_equal("losses", losses, tolerance(dtype))
    times = runner.interleave({name: silent(step) for name, step in steps.items()}, 40)
    kind = "float32" if dtype == torch.float32 else "bf16"
    return Row.of_times(f"whole training step, {kind}, llama-tiny 1 x {columns}", times, goal=goal)


def _time_row(setting: Setting, times: Times, shape: str) -> Row:
    goal = None if setting.time is None else Goal(setting.time)
    name = f"training step, {setting.name}, bert-base {shape}"
    return Row(name, "% added", added(times, OURS), added(times, PEFT), added_ratio(times, OURS, PEFT), goal=goal)


def _check_losses(setting: Setting, steps: dict[str, Step]) -> None:
    """The losses of three steps: forward, backward and update are the same."""
    losses = {name: torch.stack([steps[name]().detach() for _ in range(3)]) for name in NAMES}
    half = setting.dtype != torch.float32
    check_equal(f"losses, {setting.name}", losses, tolerance(setting.dtype) if half else 1e-4)


class Step:
    """Forward, backward and AdamW. The bare model's backward reaches its embeddings, as the adapters' does."""

    def __init__(self, model: Any, words: dict[str, Tensor], *, autocast: bool = False) -> None:
        self.model, self.words, self.autocast = model, words, autocast
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True) if parameters else None
        self.given = dict(words)
        if self.optimizer is None:
            self.embedded = model.get_input_embeddings()(self.given.pop("input_ids")).detach()

    def loss(self) -> Tensor:
        if self.optimizer is None:
            self.given["inputs_embeds"] = self.embedded.clone().requires_grad_(True)
        context: Callable[[], Any] = nullcontext
        device = self.words["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16) if self.autocast else context():
            return loss(self.model(**self.given), self.words["input_ids"])

    def __call__(self) -> Tensor:
        value = self.loss()
        value.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return value
