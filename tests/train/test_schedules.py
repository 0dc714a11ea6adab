"""A method with a schedule: it ends where it should, and an interrupted run ends where the whole one does."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from adapterkit import AdaLoraConfig
from adapterkit.config.run import run_config
from adapterkit.config.trainer import TrainerConfig
from adapterkit.registry import tasks
from adapterkit.train.models import load_base
from adapterkit.train.run import run
from adapterkit.train.schedules import FILE


def config(**settings):
    task = tasks["seq_cls"]
    trainer = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": None,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 4,
    }
    return run_config(AdaLoraConfig, task)(
        method=AdaLoraConfig(init_r=4, target_r=2, tfinal=2),
        task=task(name="seq_cls"),
        trainer=TrainerConfig(**trainer),
        data={"max_train_samples": 64, "max_eval_samples": 8, "max_length": 16},
        **settings,
    )


def interrupted_after(passes):
    """A loader of a base model that fails in its training forward after so many."""

    def load(*args, **options):
        model, seen = load_base(*args, **options), []

        def count(module, *_):
            seen.append(module.training)
            if sum(seen) > passes:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(count)
        return model

    return load


def test_an_interrupted_run_ends_where_the_whole_one_does(tmp_path):
    run(config(), tmp_path / "whole" / "run", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "cut" / "first", load=interrupted_after(7), quiet=True)
    steps = sorted((tmp_path / "cut" / "first" / "checkpoints").glob("checkpoint-*"))
    assert (steps[-1] / FILE).is_file()
    summary = run(config(resume="auto"), tmp_path / "cut" / "second", quiet=True)
    assert summary["directory"].endswith("first")

    whole, resumed = tmp_path / "whole" / "run" / "adapter", tmp_path / "cut" / "first" / "adapter"
    settings = [json.loads((folder / "adapter_config.json").read_text()) for folder in (whole, resumed)]
    assert settings[0]["rank_pattern"] == settings[1]["rank_pattern"]
    assert sum(map(sum, settings[0]["rank_pattern"].values())) == 8  # two for each of four layers
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(
        (tensors[0][name] - tensors[1][name]).abs().max() < 1e-6 for name in tensors[0] if tensors[0][name].numel()
    )
