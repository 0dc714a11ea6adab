"""Every key of ``trainer`` arrives, or is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from adapterkit.config.run import TrainerConfig
from adapterkit.errors import ConfigError
from adapterkit.registry import tasks
from adapterkit.train import arguments
from adapterkit.train.arguments import OWN, check_loggers, more_is_better, training_arguments
from tests.training import short_run

RENAMED = {"gradient_checkpointing": "activation_checkpointing"}


def made(tmp_path: Path, task: str = "seq_cls", **trainer: Any) -> TrainingArguments:
    return training_arguments(short_run(task, trainer=trainer), tmp_path, label_names=("labels",))


def test_every_key_is_known_or_ours() -> None:
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(TrainerConfig.model_fields) - OWN <= known
    assert set(TrainerConfig.model_fields) >= OWN
    assert not OWN & known - {"save_total_limit"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 0.5),
        ("num_train_epochs", 7.0),
        ("max_steps", 11),
        ("per_device_train_batch_size", 3),
        ("gradient_accumulation_steps", 5),
        ("weight_decay", 0.25),
        ("max_grad_norm", 0.0),
        ("lr_scheduler_type", "cosine"),
        ("warmup_steps", 4.0),
        ("label_smoothing_factor", 0.125),
        ("bf16", True),
        ("dataloader_drop_last", True),
        ("logging_steps", 3),
        ("optim", "sgd"),
        ("run_name", "mine"),
        ("disable_tqdm", False),
    ],
)
def test_values_arrive(tmp_path: Path, key: str, value: Any) -> None:
    assert getattr(made(tmp_path, **{key: value}), key) == value


def test_seed_and_determinism_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = training_arguments(short_run(seed=7, deterministic=True), tmp_path, label_names=("labels",))
    assert (args.seed, args.full_determinism) == (7, True)


def test_checkpointing_suits_a_frozen_base(tmp_path: Path) -> None:
    args = made(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"preserve_rng_state": False})
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(args, name))
    assert getattr(args, name) is True
    assert getattr(args, f"{name}_kwargs") == {"use_reentrant": False, "preserve_rng_state": False}


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        ("seq_cls", None, True),
        ("causal_lm", None, False),
        ("seq_cls", "f1", True),
        ("seq_cls", "loss", False),
        ("causal_lm", "accuracy", True),
    ],
)
def test_best_goes_by_the_task_then_by_the_name(tmp_path: Path, task: str, metric: str | None, expected: bool) -> None:
    args = made(tmp_path, task, metric_for_best_model=metric)
    assert args.greater_is_better is expected
    assert args.metric_for_best_model == (metric or tasks[task].default_metric)


def test_direction_can_be_said() -> None:
    assert more_is_better("loss", TrainerConfig(greater_is_better=True), tasks["seq_cls"]())


@pytest.mark.parametrize("without", ["eval_strategy", "save_strategy"])
def test_nothing_to_choose_from_means_no_best(tmp_path: Path, without: str) -> None:
    assert made(tmp_path, **{without: "no"}).load_best_model_at_end is False
    assert made(tmp_path).load_best_model_at_end is True


def test_checkpoints_and_evaluations_that_do_not_meet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.eval_strategy=steps and trainer\.save_strategy=epoch"):
        made(tmp_path, save_strategy="epoch")
    with pytest.raises(ConfigError, match=r"trainer: .*steps"):  # not a multiple
        made(tmp_path, save_steps=6)


def test_stopping_early_needs_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.early_stopping_patience needs evaluations"):
        made(tmp_path, early_stopping_patience=2, eval_strategy="no")


def test_logger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arguments.LOGGERS, "wandb", "no_such_module_here")
    with pytest.raises(ConfigError, match=r"wandb is not installed: pip install 'adapterkit\[wandb\]'"):
        check_loggers(["wandb"])


def test_unknown_logger() -> None:
    with pytest.raises(ConfigError, match=r"no logger 'tensorbord'; did you mean 'tensorboard'\?"):
        check_loggers(["tensorbord"])


def test_every_logger_is_an_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert arguments.LOGGERS.keys() <= project["optional-dependencies"].keys()
