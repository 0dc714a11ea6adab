"""Every installed method learns a built-in task with nothing but its defaults."""

from __future__ import annotations

import json

import pytest

from adapterkit.config.layer import LayerConfig
from adapterkit.config.run import run_config
from adapterkit.registry import methods, tasks
from adapterkit.train.layout import SUMMARY
from adapterkit.train.run import run

CORE = [name for name in methods if methods[name].__module__.startswith("adapterkit.methods.")]
NEEDING_TASKS = [name for name in CORE if name == "multitask_prompt_tuning"]
"""Methods that are told a task with every example, which built-in data have not."""


def task_for(name):
    """Whole sentences for adapters of layers; prompts and adapters of attention blocks are made for language models."""
    config = methods[name]
    linear = issubclass(config, LayerConfig) and "linear" in config(**config.example).adapter_class().kinds
    return "seq_cls" if linear else "causal_lm"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CORE if name not in NEEDING_TASKS])
def test_defaults_beat_the_baseline(name, tmp_path):
    config = methods[name]
    example = config.example if not issubclass(config, LayerConfig) or name == "adaption_prompt" else {}
    chosen = run_config(config, tasks[task_for(name)]).model_validate({"method": dict(example), "task": {}})
    run(chosen, tmp_path, quiet=True)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    metric, sign = summary["metric"], 1 if summary["greater_is_better"] else -1
    gain = sign * (summary["metrics"][metric] - summary["baseline"][metric])
    assert gain > (0.25 if task_for(name) == "seq_cls" else 0.7 * summary["baseline"][metric])
