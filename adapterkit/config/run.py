"""The configuration of one run: ``python -m adapterkit +method=lora task=seq_cls``.

`RunConfig` holds everything but the method and the task; `run_config` adds the fields of the two that were chosen,
so that the place of an error is the override path.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    create_model,
    model_validator,
)

from adapterkit.config.base import PeftConfig, StrictModel, Text, as_names
from adapterkit.config.choices import (
    BUILTIN_FAMILIES,
    BUILTIN_PREFIX,
    EVALUATING,
    FSDP_OPTIONS,
    WITHOUT_WARM_UP,
    Logger,
    Optimizer,
    Scheduler,
)
from adapterkit.config.coherence import misfits_of, refuse
from adapterkit.config.task import TaskConfig
from adapterkit.errors import did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]


def _known_if_built_in(name: str) -> str:
    family = name.removeprefix(BUILTIN_PREFIX)
    if family != name and family not in BUILTIN_FAMILIES:
        choices = ", ".join(BUILTIN_PREFIX + family for family in BUILTIN_FAMILIES)
        raise ValueError(f"no such built-in model{did_you_mean(family, BUILTIN_FAMILIES)} Choices: {choices}")
    return name


Source = Annotated[Text, AfterValidator(_known_if_built_in)]
"""A Hub id, a directory, or a built-in model."""


def _name_of_a_module(name: str) -> str:
    if not re.fullmatch(r"[\w-]+", name) or name.startswith("_"):
        raise ValueError(
            "must be letters, digits, _ and -, without _ in front: it is the name of a module and of a directory"
        )
    if name == "training":
        raise ValueError("is an attribute of every module, and no name for one")
    return name


def _whole_above_one(steps: float) -> float:
    if steps > 1 and steps != int(steps):
        raise ValueError("must be a whole number of steps, or a share below 1")
    return steps


Steps = Annotated[PositiveFloat, AfterValidator(_whole_above_one)]
"""A number of steps, or their share of all if below 1."""


class ModelConfig(StrictModel):
    """The frozen base model."""

    name_or_path: Source | None = Field(
        None,
        description="Hub id, directory, or builtin:bert|gpt2|llama|t5 for a tiny model made from a config; null takes "
        "the task's built-in one.",
    )
    tokenizer: Source | None = Field(None, description="Hub id or directory of the tokenizer, if not the model's own.")
    revision: Text | None = Field(None, description="Branch, tag or commit on the Hub.")
    subfolder: Text | None = Field(None, description="Folder inside name_or_path that holds the model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the frozen weights; auto keeps the checkpoint's."
    )
    load_in_8bit: bool = Field(False, description="Quantise the base to 8 bits with bitsandbytes.")
    load_in_4bit: bool = Field(False, description="Quantise the base to 4 bits with bitsandbytes.")
    trust_remote_code: bool = Field(False, description="Whether code from the model's repository may run.")
    attn_implementation: Text | None = Field(None, description="eager, sdpa, flash_attention_2, ...")

    @model_validator(mode="after")
    def _one_quantisation(self) -> Self:
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit exclude each other")
        return self


DATA_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""What ``data.format=auto`` goes by."""


class DataConfig(StrictModel):
    """Where examples come from, and how they are read."""

    path: Text | None = Field(
        None, description="Hub id, file or directory (train/dev/test files in it); null takes the task's built-in data."
    )
    name: Text | None = Field(None, description="Configuration of a data set on the Hub.")
    revision: Text | None = Field(None, description="Revision of a data set on the Hub.")
    format: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "conll", "squad", "text"] = Field(
        "auto", description="Format of local files; auto goes by the ending."
    )
    header: bool | None = Field(None, description="Whether CSV and TSV files have a header line; null looks.")
    train: Text | None = Field(None, description="Name of the training split, or its file.")
    validation: Text | None = Field(None, description="Name of the validation split, or its file.")
    test: Text | None = Field(None, description="Name of the test split, or its file.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the training split held out where there is no validation split."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="The task's column roles to the data's column names: {text: sentence}. So are the inputs that a "
        "method takes for every row: {task_ids: source}.",
    )
    max_length: PositiveInt = Field(128, description="Longest input in tokens; longer ones are cut.")
    max_target_length: PositiveInt = Field(64, description="Longest target in tokens, for sequence to sequence.")
    doc_stride: PositiveInt = Field(64, description="Overlap of the windows of a long context, for question answering.")
    max_train_samples: PositiveInt | None = Field(None, description="Use only so many training examples.")
    max_eval_samples: PositiveInt | None = Field(None, description="Use only so many validation and test examples.")


Strategy = Literal["no", "steps", "epoch"]


def _known_to_fsdp(options: str) -> str:
    for word in options.split():
        if word not in FSDP_OPTIONS:
            near = did_you_mean(word, FSDP_OPTIONS) or f"; options: {', '.join(FSDP_OPTIONS)}"
            raise ValueError(f"no option {word!r}{near}")
    return options


def _not_zero(steps: int) -> int:
    if steps == 0:
        raise ValueError("must be at least 1, or -1")
    return steps


class TrainerConfig(StrictModel):
    """Keys of `transformers.TrainingArguments`, by their own names, and a few of ours at the end."""

    learning_rate: PositiveFloat | None = Field(None, description="Peak learning rate; null takes the method's own.")
    num_train_epochs: PositiveFloat = Field(3.0, description="Passes over the training data.")
    max_steps: Annotated[int, Field(ge=-1), AfterValidator(_not_zero)] = Field(
        -1, description="Optimizer steps; -1 goes by num_train_epochs."
    )
    per_device_train_batch_size: PositiveInt = Field(32, description="Examples per step and device.")
    per_device_eval_batch_size: PositiveInt = Field(64, description="Examples per evaluation step and device.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Batches per optimizer step.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay of AdamW.")
    adam_beta1: Fraction = Field(0.9, description="First coefficient of AdamW.")
    adam_beta2: Fraction = Field(0.999, description="Second coefficient of AdamW.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="Epsilon of AdamW.")
    max_grad_norm: NonNegativeFloat = Field(1.0, description="Gradients are clipped to this norm; 0 does not clip.")
    optim: Optimizer = Field("adamw_torch_fused", description="Name of the optimizer, as transformers knows it.")
    lr_scheduler_type: Scheduler = Field("linear", description="Course of the learning rate over a run.")
    warmup_steps: NonNegativeFloat = Field(0.06, description="Warm-up steps, or their share if below 1.")
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Label smoothing.")
    bf16: bool = Field(False, description="Train under bfloat16 autocast.")
    fp16: bool = Field(False, description="Train under float16 autocast, with loss scaling.")
    tf32: bool | None = Field(None, description="Whether float32 products may use TF32.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward to save memory.")
    gradient_checkpointing_kwargs: dict[str, Any] | None = Field(None, description="{use_reentrant: false}, ...")
    torch_compile: bool = Field(False, description="Compile the model.")
    use_cpu: bool = Field(False, description="Train on the CPU even where there is an accelerator.")
    dataloader_num_workers: NonNegativeInt = Field(0, description="Worker processes that load data.")
    dataloader_drop_last: bool = Field(False, description="Drop the last, incomplete batch.")
    dataloader_pin_memory: bool = Field(True, description="Pin host memory where there is an accelerator.")
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = Field(
        "random", description="Order of the training examples; group_by_length pads less."
    )
    eval_strategy: Strategy = Field("epoch", description="When to evaluate.")
    eval_steps: Steps | None = Field(None, description="Steps between evaluations.")
    eval_on_start: bool = Field(False, description="Evaluate once before training.")
    save_strategy: Strategy = Field("epoch", description="When to write a checkpoint.")
    save_steps: Steps = Field(500, description="Steps between checkpoints.")
    save_total_limit: PositiveInt | None = Field(2, description="How many checkpoints are kept.")
    load_best_model_at_end: bool = Field(True, description="End with the best checkpoint, by metric_for_best_model.")
    metric_for_best_model: Text | None = Field(None, description="Metric that chooses; null takes the task's.")
    greater_is_better: bool | None = Field(None, description="Whether more is better; null goes by the metric.")
    logging_strategy: Strategy = Field("steps", description="When to log the training loss.")
    logging_steps: Steps = Field(10, description="Steps between log entries.")
    report_to: Annotated[list[Logger], BeforeValidator(as_names)] = Field(
        default_factory=list, description="Loggers; each is an extra of this package."
    )
    run_name: Text | None = Field(None, description="Name of the run in loggers.")
    disable_tqdm: bool | None = Field(None, description="No progress bar; null shows one on a terminal only.")
    deepspeed: Text | None = Field(None, description="Path of a DeepSpeed configuration.")
    fsdp: bool | Annotated[Text, AfterValidator(_known_to_fsdp)] | None = Field(
        None, description="Shard the model over the processes with FSDP."
    )
    fsdp_config: dict[str, Any] | Text | None = Field(
        None, description="FSDP's options, or the path of a JSON file with them, as transformers takes them."
    )
    ddp_find_unused_parameters: bool | None = Field(None, description="Passed to DistributedDataParallel.")
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="LoRA+: learning rate of LoRA's second factor as a multiple of learning_rate, such as 16."
    )
    lorafa: bool = Field(False, description="LoRA-FA: LoRA's first factor stays frozen; an AdamW of its own.")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Stop after so many evaluations without improvement; null never stops early."
    )
    early_stopping_threshold: NonNegativeFloat = Field(0.0, description="Improvement that counts as one.")
    check_steps: PositiveInt = Field(
        5, description="After so many steps every trainable tensor must have received a gradient and have changed."
    )

    @model_validator(mode="after")
    def _one_optimizer(self) -> Self:
        if self.lorafa and self.loraplus_lr_ratio is not None:
            raise ValueError("lorafa and loraplus_lr_ratio exclude each other")
        if self.lorafa and self.optim != _default_of("optim"):
            raise ValueError(f"lorafa is an optimizer of its own and excludes optim={self.optim}")
        return self

    @model_validator(mode="after")
    def _options_of_what_is_used(self) -> Self:
        if self.fsdp_config is not None and not self.fsdp:
            raise ValueError("fsdp_config has no effect without fsdp=true")
        return self

    @model_validator(mode="after")
    def _one_half_type(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other")
        return self

    @model_validator(mode="after")
    def _a_warm_up_that_ends(self) -> Self:
        if self.lr_scheduler_type in WITHOUT_WARM_UP and self.warmup_steps not in (0, _default_of("warmup_steps")):
            raise ValueError(
                f"lr_scheduler_type={self.lr_scheduler_type} has no warm-up: set trainer.warmup_steps to 0, or take "
                "another, such as constant_with_warmup"
            )
        if fault := self.standstill(self.max_steps):
            raise ValueError(fault)
        return self

    def standstill(self, steps: int) -> str:
        """Why the learning rate of a run is 0 in each of its steps; nothing if it is not."""
        if steps != 1 or self.warmup_steps < 1 or self.lr_scheduler_type in WITHOUT_WARM_UP:
            return ""
        return (
            f"warmup_steps={self.warmup_steps:g} begins with a learning rate of 0, and the run has one step only: set "
            "trainer.warmup_steps to 0, or take more steps (trainer.max_steps, trainer.num_train_epochs)"
        )

    @model_validator(mode="after")
    def _settings_that_are_used(self) -> Self:
        for what in ("eval", "save", "logging"):
            strategy, steps = getattr(self, f"{what}_strategy"), getattr(self, f"{what}_steps")
            if strategy == "epoch" and steps != _default_of(f"{what}_steps"):
                raise ValueError(
                    f"{what}_steps={steps:g} would do nothing: set trainer.{what}_strategy to steps, which is epoch"
                )
        if self.gradient_checkpointing_kwargs and not self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing_kwargs would do nothing without trainer.gradient_checkpointing")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("early_stopping_threshold would do nothing without trainer.early_stopping_patience")
        return self

    @model_validator(mode="after")
    def _evaluations_where_needed(self) -> Self:
        needing = [f"lr_scheduler_type={self.lr_scheduler_type}"] if self.lr_scheduler_type in EVALUATING else []
        needing += ["early_stopping_patience"] if self.early_stopping_patience is not None else []
        if needing and self.eval_strategy == "no":
            raise ValueError(f"{' and '.join(needing)} needs evaluations: set trainer.eval_strategy to epoch or steps")
        return self

    @model_validator(mode="after")
    def _a_checkpoint_at_every_evaluation(self) -> Self:
        evaluates, saves = self.eval_strategy, self.save_strategy
        if not self.keeps_best:
            return self
        if evaluates != saves:
            raise ValueError(
                "load_best_model_at_end needs a checkpoint at every evaluation, but trainer.eval_strategy="
                f"{evaluates} and trainer.save_strategy={saves}; set both alike, or the first to false"
            )
        every = self.eval_steps or self.logging_steps
        if evaluates == "steps" and not _is_multiple(self.save_steps, every):
            raise ValueError(
                f"load_best_model_at_end needs an evaluation at every checkpoint, but trainer.save_steps="
                f"{self.save_steps:g} is no multiple of the {every:g} steps between evaluations"
            )
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether the run ends with its best checkpoint: not without evaluations or checkpoints to choose from."""
        return self.load_best_model_at_end and "no" not in (self.eval_strategy, self.save_strategy)


def _default_of(key: str) -> Any:
    return TrainerConfig.model_fields[key].default


def _is_multiple(steps: float, of: float) -> bool:
    """Whether every ``steps`` steps is always also every ``of`` steps; shares are compared to a millionth."""
    if steps < 1 and of < 1:
        return round(steps * 1e6) % max(1, round(of * 1e6)) == 0
    return steps % of == 0


class SweepConfig(StrictModel):
    """How a sweep ends and what its report compares."""

    metric: Text | None = Field(None, description="Metric the trials are ranked by; null takes the task's.")
    on_failure: Literal["continue", "stop"] = Field("continue", description="What a failed trial does to the rest.")


class RunConfig(StrictModel):
    """Everything of a run but its method and its task."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="The frozen base model.")
    data: DataConfig = Field(default_factory=DataConfig, description="Where examples come from.")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig, description="How to train.")
    sweep: SweepConfig = Field(default_factory=SweepConfig, description="How a sweep is reported.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of initialisation, data order and dropout."
    )
    deterministic: bool = Field(False, description="Only deterministic kernels, at some cost in speed.")
    adapter_name: Annotated[Text, AfterValidator(_name_of_a_module)] = Field(
        "default", description="Name of the adapter."
    )
    resume: Text | None = Field(None, description="auto, or the directory of an interrupted run to go on with.")
    dry_run: bool = Field(False, description="Stop after the targets are matched and the parameters counted.")
    method: Any = Field(None, description="The adapter method.")
    task: Any = Field(None, description="What the model is for.")

    @model_validator(mode="after")
    def _learning_rate_of_the_method(self) -> Self:
        if self.trainer.learning_rate is None and isinstance(self.method, PeftConfig):
            changes = {"learning_rate": self.method.learning_rate}
            self.__dict__["trainer"] = self.trainer.model_copy(update=changes)  # an assignment would validate again
        return self

    @model_validator(mode="after")
    def _sections_go_together(self) -> Self:
        found = list(misfits_of(self))
        if found:
            refuse(found)
        return self


@cache
def run_config(method: type[PeftConfig], task: type[TaskConfig]) -> type[RunConfig]:
    """The run configuration for one method and one task, both validated in place."""
    return create_model(
        "RunConfig",
        __base__=RunConfig,
        method=(method, Field(description="The adapter method.")),
        task=(task, Field(description="What the model is for.")),
    )
