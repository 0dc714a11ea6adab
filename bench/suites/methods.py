"""The cost of a training step by method."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from bench.contenders import NAMES, module, silent
from bench.memory import MIB, saved_bytes
from bench.models import TARGETS, build, check_equal, inputs, output
from bench.rows import OURS, PEFT, Goal, Row, tried
from bench.suites.training import Step
from bench.timing import Runner

MODEL = "bert-base"
Methods = dict[str, tuple[str, dict[str, Any], float | None]]

METHODS: Methods = {  # row -> config class, its fields, goal in % added
    "LoRA": ("LoraConfig", {"r": 8, "lora_alpha": 12}, 5),
    "DoRA": ("LoraConfig", {"r": 8, "lora_alpha": 12, "use_dora": True}, 20),
    "LoHa": ("LoHaConfig", {"r": 8, "alpha": 12}, 60),
    "LoKr": ("LoKrConfig", {"r": 8, "alpha": 12}, 30),
    "OFT": ("OFTConfig", {"r": 8, "oft_block_size": 0}, 40),
    "OFT, blocks of 32": ("OFTConfig", {}, 40),
    "HRA": ("HRAConfig", {"r": 8}, 20),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 12, "target_r": 8, "total_step": 1000}, None),
    "VeRA": ("VeraConfig", {"r": 64}, None),
    "BOFT": ("BOFTConfig", {"boft_block_size": 8}, None),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 1000}, None),
}
QUICK = ("LoRA", "DoRA", "LoHa", "LoKr", "IA3")


def rows(runner: Runner) -> Iterator[Row]:
    shape = (2, 16) if runner.smoke else (4, 64)
    for method, (class_name, fields, goal) in chosen(runner, METHODS).items():
        yield from tried(f"training step, {method}", _method, runner, method, class_name, fields, goal, shape)


def chosen(runner: Runner, methods: Methods) -> Methods:
    """All of them, or a few for a quick run."""
    is_quick = runner.quick and not runner.smoke
    return {name: methods[name] for name in QUICK if name in methods} if is_quick else methods


def config_of(library: str, class_name: str, fields: dict[str, Any]) -> Any:
    """The method's config; None where the library has no such method."""
    try:
        found = getattr(module(library), class_name) if library == PEFT else _installed(class_name)
        return found(**fields, target_modules=list(TARGETS["bert"]))
    except (AttributeError, KeyError):
        return None


def _installed(class_name: str) -> Any:
    """Our config class of that name, whichever plugin brings it."""
    installed = module(f"{OURS}.registry").methods.values()
    return {config.__name__.lower(): config for config in installed}[class_name.lower()]


def _method(
    runner: Runner, method: str, class_name: str, fields: dict[str, Any], goal: float | None, shape: tuple[int, int]
) -> Row | None:
    configs = {name: config_of(name, class_name, fields) for name in NAMES}
    if None in configs.values():
        print(f"{method}: not there in {', '.join(n for n, c in configs.items() if c is None)}", file=sys.stderr)
        return None
    layers = 1 if runner.quick else 2
    models: dict[str, Any] = {"bare": build(MODEL, num_hidden_layers=layers).requires_grad_(False)}
    words = inputs(models["bare"], *shape)
    for name, config in configs.items():
        models[name] = module(name).get_peft_model(build(MODEL, num_hidden_layers=layers), config).eval()
    check_equal(f"{method} at its start", {name: output(model(**words)) for name, model in models.items()}, 1e-4)
    steps = {name: _Backward(model.train(), words) for name, model in models.items()}
    kept = {name: saved_bytes(step.loss, step.model) / MIB for name, step in steps.items()}
    times = runner.interleave({name: silent(step) for name, step in steps.items()}, 21)
    size = f"{layers} layer{'s' if layers > 1 else ''} of {MODEL} {shape[0]} x {shape[1]}"
    row = Row.of_added(f"training step, {method}, {size}", times, goal and Goal(goal, "ours"))
    saved = "/".join(f"{kept[name] - kept['bare']:.0f}" for name in (OURS, PEFT))
    return Row(row.name, row.unit, row.ours, row.peft, row.ratio, goal=row.goal, note=f"kept {saved} MiB")


class _Backward(Step):
    """Forward and backward without an optimizer: the method's own cost."""

    def __call__(self) -> torch.Tensor:
        value = self.loss()
        value.backward()
        self.model.zero_grad(set_to_none=True)
        return value
