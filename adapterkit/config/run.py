"""The configuration of one run: ``python -m adapterkit +method=lora task=seq_cls``.

`RunConfig` holds everything but the method and the task; `run_config` adds the fields of the two that were chosen,
so that the place of an error is the override path.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    create_model,
    model_validator,
)

from adapterkit.config.base import PeftConfig
from adapterkit.config.choices import BUILTIN_FAMILIES, BUILTIN_PREFIX
from adapterkit.config.coherence import misfits_of, refuse
from adapterkit.config.strict import StrictModel, Text
from adapterkit.config.task import TaskConfig
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import of_choices


def _known_if_built_in(name: str) -> str:
    family = name.removeprefix(BUILTIN_PREFIX)
    if family != name and family not in BUILTIN_FAMILIES:
        raise ValueError(f"no such built-in model{of_choices(name, map(BUILTIN_PREFIX.__add__, BUILTIN_FAMILIES))}")
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

    of_some_tasks: ClassVar[tuple[str, ...]] = ("max_target_length", "doc_stride")
    """The fields that a task reads only if it says so, by `TaskConfig.data_fields`."""

    path: Text | None = Field(
        None, description="Hub id, file or directory (train/dev/test files in it); null takes the task's built-in data."
    )
    name: Text | None = Field(None, description="Configuration of a data set on the Hub.")
    revision: Text | None = Field(None, description="Revision of a data set on the Hub.")
    format: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "conll", "squad", "text"] = Field(
        "auto", description="Format of local files; auto goes by the ending."
    )
    header: bool | None = Field(None, description="Whether CSV and TSV files have a header line; null looks.")
    separator: Literal["comma", "semicolon", "tab", "pipe"] | None = Field(
        None, description="What separates the cells of CSV files; null looks."
    )
    train: Text | None = Field(None, description="Name of the training split, or its file.")
    validation: Text | None = Field(None, description="Name of the validation split, or its file.")
    test: Text | None = Field(None, description="Name of the test split, or its file.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the training split held out where there is no validation split."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of the data's columns, by what they are for the task: {text: sentence}. The inputs that a "
        "method takes for every row have theirs here, too: {task_ids: source}.",
    )
    max_length: PositiveInt = Field(128, description="Longest input in tokens; longer ones are cut.")
    max_target_length: PositiveInt = Field(64, description="Longest target in tokens, for sequence to sequence.")
    doc_stride: PositiveInt | None = Field(
        None,
        description="Overlap of the windows of a long context in tokens, for question answering; null takes a quarter "
        "of max_length.",
    )
    max_train_samples: PositiveInt | None = Field(None, description="Use only so many training examples.")
    max_eval_samples: PositiveInt | None = Field(None, description="Use only so many validation and test examples.")

    @model_validator(mode="after")
    def _data_that_are_named(self) -> Self:
        if self.path is None and self.train is None:
            for key in ("name", "revision", "format", "header", "separator", "validation", "test"):
                value = getattr(self, key)
                if value != type(self).model_fields[key].default:
                    raise ValueError(f"{key}={value} would do nothing without data.path or data.train")
        return self


class SweepConfig(StrictModel):
    """How a sweep ends and what its report compares."""

    metric: Text | None = Field(None, description="Metric the trials are ranked by; null takes the task's.")
    on_failure: Literal["continue", "stop"] = Field(
        "continue", description="Whether the trials after a failed one are run, or skipped."
    )


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
    resume: Text | None = Field(
        None,
        description="auto, or the directory of an interrupted run to go on with. auto finds it, and trains nothing "
        "where the run has ended in its directory already.",
    )
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
