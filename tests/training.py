"""Short runs on built-in models and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from adapterkit.config.run import RunConfig, run_config
from adapterkit.registry import methods, tasks
from adapterkit.train.layout import ADAPTER

SHORT: dict[str, Any] = {
    "data": {"max_train_samples": 64, "max_eval_samples": 16},
    "trainer": {
        "per_device_train_batch_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 8,
        "logging_steps": 2,
        "use_cpu": True,
    },
}


def short_run(task: str = "seq_cls", method: str = "lora", /, **changes: Any) -> RunConfig:
    """The configuration of eight steps; ``changes`` are laid over it, section by section."""
    targets = {"max_target_length": 8} if "max_target_length" in tasks[task].data_fields else {}
    sections: dict[str, Any] = {"method": {}, "task": {}, **SHORT, "data": {**SHORT["data"], **targets}}
    for name, value in changes.items():
        merged = isinstance(value, dict) and isinstance(sections.get(name), dict)
        sections[name] = {**sections[name], **value} if merged else value
    return run_config(methods[method], tasks[task]).model_validate(sections)


def trained(run: Path) -> dict[str, Tensor]:
    """The tensors of the adapter that a run wrote."""
    return load_file(run / ADAPTER / "adapter_model.safetensors")
