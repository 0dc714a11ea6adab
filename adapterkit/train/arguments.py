"""`TrainerConfig` to `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode

from adapterkit import launcher, optimizers
from adapterkit.config.choices import WITHOUT_WARM_UP
from adapterkit.config.run import RunConfig
from adapterkit.config.task import TaskConfig, more_is_better
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import ConfigError

logger = logging.getLogger("adapterkit")

OWN = frozenset(
    {"check_steps", "early_stopping_patience", "early_stopping_threshold", "save_total_limit", *optimizers.OPTIONS}
)
"""Keys that are ours; checkpoints are counted by `adapterkit.train.resume`."""


def training_arguments(
    config: RunConfig, output_dir: Path, *, label_names: tuple[str, ...], default_metric: str | None = None
) -> TrainingArguments:
    """What `transformers.Trainer` is configured with.

    Args:
        config: the run, with its task.
        output_dir: where checkpoints go.
        label_names: inputs of the model that are labels.
        default_metric: the metric that suits the data, if it is not the task's.

    Raises:
        ConfigError: a logger is not installed, or the machine cannot do what is asked.
    """
    trainer = config.trainer
    check_loggers(trainer.report_to)
    on_cpu = trainer.use_cpu or (launcher.count() > 1 and not torch.accelerator.is_available())
    options = {key: value for key, value in trainer.model_dump().items() if key not in OWN}
    options |= {
        "output_dir": str(output_dir),
        "seed": config.seed,
        "full_determinism": config.deterministic,
        "report_to": trainer.report_to or "none",
        "load_best_model_at_end": trainer.keeps_best,
        "use_cpu": on_cpu,
        "disable_tqdm": not sys.stderr.isatty() if trainer.disable_tqdm is None else trainer.disable_tqdm,
        "dataloader_pin_memory": trainer.dataloader_pin_memory and torch.cuda.is_available() and not trainer.use_cpu,
        "label_names": list(label_names),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "restore_callback_states_from_checkpoint": trainer.early_stopping_patience is not None,
    }
    options |= _best(trainer, config.task, default_metric) | _checkpointing(trainer)
    options = {key: value for key, value in options.items() if value is not None}
    try:
        args = TrainingArguments(**options)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}") from error
    if trainer.fsdp and (args.parallel_mode is not ParallelMode.DISTRIBUTED or args.device.type == "cpu"):
        raise ConfigError(
            "trainer.fsdp: there is nothing to shard the model over: it takes several processes, as torchrun starts "
            f"them, with an accelerator each, and this is {launcher.count()} on {args.device.type}"
        )
    return args


def _best(trainer: TrainerConfig, task: TaskConfig, default_metric: str | None) -> dict[str, Any]:
    metric = trainer.metric_for_best_model or default_metric or task.default_metric
    return {"metric_for_best_model": metric, "greater_is_better": more_is_better(metric, trainer, task)}


def _checkpointing(trainer: TrainerConfig) -> dict[str, Any]:
    """Gradient checkpointing under the name this release has for it, in the form that works on a frozen base."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    options: dict[str, Any] = {"gradient_checkpointing": None, "gradient_checkpointing_kwargs": None}
    if trainer.gradient_checkpointing:
        options[name] = True
        options[f"{name}_kwargs"] = {"use_reentrant": False, **(trainer.gradient_checkpointing_kwargs or {})}
    return options


def steps_of(args: TrainingArguments, examples: int) -> int:
    """How many steps the optimizer takes over a run on so many training examples.

    Raises:
        ConfigError: none, as there is no batch.
    """
    whole: float = examples / (args.train_batch_size * args.world_size)
    batches = math.floor(whole) if args.dataloader_drop_last else math.ceil(whole)
    if not batches:
        raise ConfigError(
            f"trainer.dataloader_drop_last: {examples} training examples are less than one batch "
            f"(trainer.per_device_train_batch_size={args.per_device_train_batch_size}), and there would be none"
        )
    if args.max_steps > 0:
        return int(args.max_steps)
    updates: int = math.ceil(batches / args.gradient_accumulation_steps)
    return math.ceil(float(args.num_train_epochs) * updates)


def fit_warm_up(args: TrainingArguments, trainer: TrainerConfig, steps: int) -> None:
    """Leave a run a learning rate: of one step, no share is taken for the warm-up.

    Raises:
        ConfigError: it would be 0 throughout.
    """
    if fault := trainer.standstill(steps):
        raise ConfigError(f"trainer.{fault}")
    if steps == 1:
        args.warmup_steps = 0
    elif trainer.lr_scheduler_type not in WITHOUT_WARM_UP and args.get_warmup_steps(steps) >= steps:
        logger.warning(
            "trainer.warmup_steps=%g is not over when the run of %d steps ends: trainer.learning_rate is not reached",
            trainer.warmup_steps,
            steps,
        )


def check_optimizer(args: TrainingArguments, model: Any) -> None:
    """
    Raises:
        ConfigError: what the optimizer needs is not there.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"trainer.optim={OptimizerNames(args.optim).value}: {error}") from error


def check_loggers(names: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: a logger is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trainer.report_to: {name} is not installed: pip install 'adapterkit[{name}]'")
