"""How a run trains: the keys of ``trainer``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from adapterkit.config.choices import (
    EVALUATING,
    FSDP_OPTIONS,
    WITHOUT_BETAS,
    WITHOUT_EPSILON,
    WITHOUT_WARM_UP,
    Logger,
    Optimizer,
    Scheduler,
)
from adapterkit.config.strict import StrictModel, Text, as_names
from adapterkit.errors import did_you_mean

BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _whole_above_one(steps: float) -> float:
    if steps > 1 and steps != int(steps):
        raise ValueError("must be a whole number of steps, or a share below 1")
    return steps


Steps = Annotated[PositiveFloat, AfterValidator(_whole_above_one)]
"""A number of steps, or their share of all if below 1."""

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

    only_with: ClassVar[dict[str, tuple[str, Any]]] = {
        "gradient_checkpointing_kwargs": ("gradient_checkpointing", True),
        "early_stopping_threshold": ("early_stopping_patience", True),
        "fsdp_config": ("fsdp", True),
        "run_name": ("report_to", True),
    }

    learning_rate: PositiveFloat | None = Field(None, description="Peak learning rate; null takes the method's own.")
    num_train_epochs: PositiveFloat = Field(3.0, description="Passes over the training data, unless max_steps is set.")
    max_steps: Annotated[int, Field(ge=-1), AfterValidator(_not_zero)] = Field(
        -1, description="Optimizer steps; -1 goes by num_train_epochs."
    )
    per_device_train_batch_size: PositiveInt = Field(32, description="Examples per step and device.")
    per_device_eval_batch_size: PositiveInt = Field(64, description="Examples per evaluation step and device.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Batches per optimizer step.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay.")
    adam_beta1: BelowOne = Field(0.9, description="First coefficient of AdamW.")
    adam_beta2: BelowOne = Field(0.999, description="Second coefficient of AdamW.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="Epsilon of AdamW.")
    max_grad_norm: NonNegativeFloat = Field(1.0, description="Gradients are clipped to this norm; 0 does not clip.")
    optim: Optimizer = Field("adamw_torch_fused", description="Name of the optimizer, as transformers knows it.")
    lr_scheduler_type: Scheduler = Field("linear", description="Course of the learning rate over a run.")
    warmup_steps: NonNegativeFloat = Field(0.06, description="Warm-up steps, or their share if below 1.")
    label_smoothing_factor: BelowOne = Field(0.0, description="Label smoothing.")
    bf16: bool = Field(False, description="Train under bfloat16 autocast.")
    fp16: bool = Field(False, description="Train under float16 autocast, with loss scaling.")
    tf32: bool | None = Field(None, description="Whether float32 products may use TF32; null does not say.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward to save memory.")
    gradient_checkpointing_kwargs: dict[str, Any] | None = Field(
        None, description="As torch.utils.checkpoint takes them: {use_reentrant: false}."
    )
    torch_compile: bool = Field(False, description="Compile the model.")
    use_cpu: bool = Field(False, description="Train on the CPU even where there is an accelerator.")
    dataloader_num_workers: NonNegativeInt = Field(0, description="Worker processes that load data.")
    dataloader_drop_last: bool = Field(False, description="Drop the last, incomplete batch.")
    dataloader_pin_memory: bool = Field(True, description="Pin host memory where there is an accelerator.")
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = Field(
        "random", description="Order of the training examples; group_by_length pads less."
    )
    eval_strategy: Strategy = Field("epoch", description="When to evaluate.")
    eval_steps: Steps | None = Field(
        None, description="Steps between evaluations, or their share of all if below 1; null takes logging_steps."
    )
    eval_on_start: bool = Field(False, description="Evaluate once before training.")
    save_strategy: Strategy = Field("epoch", description="When to write a checkpoint.")
    save_steps: Steps = Field(500, description="Steps between checkpoints, or their share of all if below 1.")
    save_total_limit: PositiveInt | None = Field(
        2, description="How many checkpoints are kept, the best one among them; null keeps all."
    )
    load_best_model_at_end: bool = Field(True, description="End with the best checkpoint, by metric_for_best_model.")
    metric_for_best_model: Text | None = Field(
        None, description="Metric by which the best checkpoint is chosen; null takes the task's."
    )
    greater_is_better: bool | None = Field(None, description="Whether more is better; null goes by the metric.")
    logging_strategy: Strategy = Field("steps", description="When to log the training loss.")
    logging_steps: Steps = Field(10, description="Steps between log entries, or their share of all if below 1.")
    report_to: Annotated[list[Logger], BeforeValidator(as_names)] = Field(
        default_factory=list, description="Loggers; each is an extra of this package."
    )
    run_name: Text | None = Field(None, description="Name of the run in loggers.")
    disable_tqdm: bool | None = Field(None, description="No progress bar; null shows one on a terminal only.")
    deepspeed: Text | None = Field(None, description="Path of a DeepSpeed configuration.")
    fsdp: bool | Annotated[Text, AfterValidator(_known_to_fsdp)] | None = Field(
        None, description="Shard the model over the processes with FSDP: true, or words such as 'full_shard auto_wrap'."
    )
    fsdp_config: dict[str, Any] | Text | None = Field(
        None, description="FSDP's options, or the path of a JSON file with them, as transformers takes them."
    )
    ddp_find_unused_parameters: bool | None = Field(
        None, description="Whether DistributedDataParallel looks for parameters without a gradient; null does not say."
    )
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="LoRA+: learning rate of LoRA's second factor as a multiple of learning_rate, such as 16."
    )
    lorafa: bool = Field(False, description="LoRA-FA: LoRA's first factor stays frozen; an AdamW of its own.")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Stop after so many evaluations without improvement; null never stops early."
    )
    early_stopping_threshold: NonNegativeFloat = Field(0.0, description="Improvement that counts as one.")
    check_steps: Annotated[int, Field(ge=2)] = Field(
        5,
        description="After so many steps every trainable tensor must have received a gradient and have changed; behind "
        "one that begins at zero, as LoRA's A does, it takes two.",
    )

    @model_validator(mode="after")
    def _one_optimizer(self) -> Self:
        if self.lorafa and self.loraplus_lr_ratio is not None:
            raise ValueError("lorafa and loraplus_lr_ratio exclude each other")
        if self.lorafa and self.optim != _default_of("optim"):
            raise ValueError(f"lorafa is an optimizer of its own and excludes optim={self.optim}")
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
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            without = WITHOUT_EPSILON if key == "adam_epsilon" else WITHOUT_BETAS
            if self.optim in without and (value := getattr(self, key)) != _default_of(key):
                raise ValueError(f"{key}={value:g} would do nothing: optim={self.optim} does not read it")
        if fault := self.idle():
            raise ValueError(fault)
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
