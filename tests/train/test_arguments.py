"""Every key of ``trainer`` arrives, or is refused by name."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from adapterkit.config.choices import BUILTIN_FAMILIES, EVALUATING, LOGGERS, Optimizer, Scheduler
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import ConfigError
from adapterkit.registry import tasks
from adapterkit.train import tiny
from adapterkit.train.arguments import (
    OWN,
    check_loggers,
    fit_warm_up,
    more_is_better,
    steps_of,
    training_arguments,
)
from tests.training import short_run


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
    with pytest.raises(ValidationError, match=r"trainer\.eval_strategy=steps and trainer\.save_strategy=epoch"):
        made(tmp_path, save_strategy="epoch", save_steps=500)


@pytest.mark.parametrize(
    ("save_steps", "eval_steps", "meet"),
    [
        (8, 4, True),
        (6, 4, False),
        (500, None, True),
        (5, None, False),
        (0.5, 0.1, True),
        (0.25, 0.1, False),
        (1, 0.5, True),
    ],
)
def test_checkpoints_fall_on_evaluations_as_transformers_counts_them(tmp_path, save_steps, eval_steps, meet) -> None:
    options = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": save_steps, "eval_steps": eval_steps}
    asked = {key: value for key, value in options.items() if value is not None}
    raised = nullcontext() if meet else pytest.raises(ValueError, match="multiple")
    with raised:
        TrainingArguments(str(tmp_path), load_best_model_at_end=True, **asked)
    with raised:
        TrainerConfig(**options)


def test_stopping_early_needs_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"early_stopping_patience needs evaluations"):
        made(tmp_path, early_stopping_patience=2, eval_strategy="no")


def test_logger_that_is_not_installed() -> None:
    with pytest.raises(ConfigError, match=r"no_such_one is not installed: pip install 'adapterkit\[no_such_one\]'"):
        check_loggers(["no_such_one"])


def test_every_logger_is_an_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {*LOGGERS} <= project["optional-dependencies"].keys()


def _needs_nothing_else(name: str) -> bool:
    try:
        get_scheduler(name, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 1, 10)
    except (TypeError, ValueError):
        return False
    return True


def test_schedulers_are_those_of_transformers_that_need_no_arguments() -> None:
    assert set(get_args(Scheduler)) == {kind.value for kind in SchedulerType if _needs_nothing_else(kind.value)}


def test_optimizers_are_those_of_transformers() -> None:
    assert set(get_args(Optimizer)) == {kind.value for kind in OptimizerNames}


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_coefficients_that_an_optimizer_does_not_read_are_refused(tmp_path: Path, name: str) -> None:
    def settings(**trainer: Any) -> str:
        args = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True, **trainer)
        try:
            return repr(Trainer.get_optimizer_cls_and_kwargs(args))
        except (ImportError, ValueError) as error:
            pytest.skip(str(error))

    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        refused = pytest.raises(ValidationError, match=f"{key}=0.5 would do nothing: optim={name} does not read it")
        with nullcontext() if settings() != settings(**{key: 0.5}) else refused:
            TrainerConfig(**{"optim": name, key: 0.5})


def test_a_name_for_loggers_needs_one(tmp_path: Path) -> None:
    assert made(tmp_path, run_name="mine", report_to=["tensorboard"]).run_name == "mine"
    with pytest.raises(ValidationError, match="run_name='mine' would do nothing without report_to"):
        TrainerConfig(run_name="mine")


@pytest.mark.parametrize("name", EVALUATING)
def test_schedulers_that_go_by_evaluations_do_so_in_transformers(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="requires an eval strategy"):
        TrainingArguments(str(tmp_path), lr_scheduler_type=name, eval_strategy="no")


def test_built_in_models_are_those_that_can_be_made() -> None:
    assert set(tiny.SIZES) == set(BUILTIN_FAMILIES)


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to shard"):
        made(tmp_path, fsdp=True)
    with pytest.raises(ValidationError, match=r"fsdp_config=.* would do nothing without fsdp"):
        made(tmp_path, fsdp_config={"version": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "at least 1, or -1"),
        ({"max_steps": 1, "warmup_steps": 4.0}, r"a learning rate of 0.* set trainer\.warmup_steps to 0, or take more"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 4.0}, "constant has no warm-up.*constant_with_warmup"),
    ],
)
def test_steps_and_warm_up_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainerConfig(**options)


@pytest.mark.parametrize(
    ("options", "examples", "steps"),
    [
        ({"max_steps": 7}, 1, 7),
        ({"num_train_epochs": 2.0}, 17, 6),
        ({"num_train_epochs": 2.0, "dataloader_drop_last": True}, 17, 4),
        ({"num_train_epochs": 1.5, "gradient_accumulation_steps": 2}, 17, 3),
        ({"num_train_epochs": 0.01}, 17, 1),
    ],
)
def test_steps_of_a_run(tmp_path: Path, options: dict[str, Any], examples: int, steps: int) -> None:
    assert steps_of(made(tmp_path, **{"max_steps": -1, **options}), examples) == steps


def test_no_whole_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.dataloader_drop_last: 7 training examples are less than one"):
        steps_of(made(tmp_path, dataloader_drop_last=True), 7)


def test_a_warm_up_longer_than_the_run_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = made(tmp_path, warmup_steps=20.0)
    fit_warm_up(args, TrainerConfig(warmup_steps=20.0), 21)
    assert not caplog.messages
    fit_warm_up(args, TrainerConfig(warmup_steps=20.0), 20)
    assert "trainer.warmup_steps=20 is not over when the run of 20 steps ends" in caplog.text
