"""Inference: what adapters add to the bare model, token by token and in batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contenders import activate, forward, load_all, silent
from bench.models import build, check_equal, inputs, targets_of, tolerance, write_lora
from bench.rows import Goal, Row, tried
from bench.timing import Runner, Times, added

NAMES = ["a0", "a1", "a2"]


def rows(runner: Runner) -> Iterator[Row]:
    decode, batch = (1, 1), (2, 16) if runner.smoke else (8, 128)
    tiny, half = "llama-tiny", {"dtype": torch.bfloat16}
    cases: list[tuple[str, str, tuple[int, int], dict[str, Any]]] = [
        ("decode, llama-tiny, one adapter", tiny, decode, {"goal": 10, "least": True}),
        ("decode, three active adapters", tiny, decode, {"goal": 20, "active": 3}),
        ("decode, adapter disabled", tiny, decode, {"goal": 1, "disabled": True}),
        ("batch 8 x 128, llama-tiny, one adapter", tiny, batch, {"goal": 4, "least": True}),
        ("batch 8 x 128, llama-tiny, three active", tiny, batch, {"active": 3}),
        ("batch 8 x 128, bert-base, one adapter", "bert-base", batch, {"goal": 4, "least": True}),
        ("decode, bf16, one adapter", tiny, decode, half),
        ("batch 8 x 128, bf16, one adapter", tiny, batch, half),
    ]
    for name, model, shape, options in cases:
        if not (runner.quick and model == "bert-base"):
            yield from tried(name, lambda *a, o=options: _row(runner, *a, **o), name, model, shape)


def _row(
    runner: Runner,
    name: str,
    model: str,
    shape: tuple[int, int],
    *,
    goal: float | None = None,
    active: int = 1,
    disabled: bool = False,
    least: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Row:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        models = _models(model, Path(directory), dtype, active=active, least=least)
        if disabled:
            for key in ("peft", "adapterkit"):
                stack.enter_context(models[key].disable_adapter())
        words = inputs(models["bare"], *shape)
        times = _measure(runner, name, models, words, dtype, compared=not disabled)
    floor = {"floor": added(times, "floor")} if least else {}
    return Row.of_added(name, times, None if goal is None else Goal(goal, "ours"), **floor)


def _measure(
    runner: Runner, name: str, models: dict[str, Any], words: Any, dtype: torch.dtype, *, compared: bool
) -> Times:
    works = {key: forward(model, words) for key, model in models.items()}
    outputs = {key: work() for key, work in works.items() if key != "bare" or not compared}
    check_equal(name, outputs, tolerance(dtype))
    single = words["input_ids"].numel() == 1
    return runner.interleave(
        {key: silent(work) for key, work in works.items()}, 120 if single else 25, inner=3 if single else 1, warm=2
    )


def _models(model: str, root: Path, dtype: torch.dtype, *, active: int, least: bool) -> dict[str, Any]:
    """Every contender with its adapters loaded and active; with ``least``, the floor too."""
    for number, adapter in enumerate(NAMES[:active]):
        write_lora(build(model, "meta"), root / adapter, seed=number)
    models = load_all(model, root / "a0", "a0", dtype=dtype)
    for key in ("peft", "adapterkit"):
        for adapter in NAMES[1:active]:
            models[key].load_adapter(root / adapter, adapter)
        if active > 1:
            activate(models[key], NAMES[:active])
        models[key].eval()
    if least:
        models["floor"] = _least(build(model, dtype=dtype), models["adapterkit"])
    return models


class LeastLayer(nn.Module):
    """The least that an adapted layer can do: the base's product and two thin ones, in one Python frame."""

    def __init__(self, layer: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.layer, self.a, self.b = layer, a.T.contiguous(), (b.T * scaling).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows, parameters = x.reshape(-1, x.shape[-1]), self._modules["layer"]._parameters  # type: ignore[union-attr]
        y = F.linear(rows, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]
        return y.addmm_(rows.mm(self.a), self.b).view(*x.shape[:-1], -1)


def _least(model: nn.Module, adapted: Any) -> nn.Module:
    from adapterkit.checkpoint.state import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, adapter_name="a0")
    for name, layer in list(targets_of(model)):
        a, b = (state[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LeastLayer(layer, a, b, 1.5))
    return model
