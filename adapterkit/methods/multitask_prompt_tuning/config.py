"""Settings of multitask prompt tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import override

from adapterkit.config.base import Form
from adapterkit.config.prompt import WordPromptConfig
from adapterkit.config.strict import Choice, Text

Start = Literal["RANDOM", "TEXT", "AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"]


class MultitaskPromptTuningInit(StrEnum):
    """The values of `MultitaskPromptTuningConfig.prompt_tuning_init`."""

    RANDOM = "RANDOM"
    TEXT = "TEXT"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


class MultitaskPromptTuningConfig(WordPromptConfig):
    """Multitask prompt tuning (Wang et al., 2023), https://arxiv.org/abs/2303.02861: a prompt for all tasks times a
    low-rank factor for each. Forward and generate take ``task_ids``, one integer for every row of the batch."""

    adapter: ClassVar[str] = "adapterkit.methods.multitask_prompt_tuning.adapter:MultitaskPromptTuningAdapter"
    learning_rate: ClassVar[float] = 3e-2
    start_fields: ClassVar[Mapping[str, Any]] = {
        **WordPromptConfig.start_fields,
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": None,
    }

    only_with: ClassVar[Mapping[str, tuple[str, Any]]] = {
        **WordPromptConfig.only_with,
        "prompt_tuning_init_task": ("prompt_tuning_init", "EXACT_SOURCE_TASK"),
    }

    forward_inputs: ClassVar[frozenset[str]] = frozenset({"task_ids"})

    peft_type: Annotated[Literal["MULTITASK_PROMPT_TUNING"], Choice] = Field(
        "MULTITASK_PROMPT_TUNING", description="Name of the method."
    )
    prompt_tuning_init: Annotated[Start, Choice] = Field(
        "RANDOM",
        description="How the prompt starts: RANDOM, TEXT (the words of a text), or from a trained one: with the mean "
        "of its factors (AVERAGE_SOURCE_TASKS), the factors of one task (EXACT_SOURCE_TASK), or none of them "
        "(ONLY_SOURCE_SHARED).",
    )
    prompt_tuning_init_state_dict_path: Text | None = Field(
        None, description="File of the trained prompt's tensors, safetensors or pickled."
    )
    prompt_tuning_init_task: NonNegativeInt = Field(0, description="With EXACT_SOURCE_TASK: which task.")
    num_ranks: PositiveInt = Field(1, description="Rank of each task's factor.")
    num_tasks: PositiveInt = Field(1, description="Number of tasks.")

    @property
    @override
    def row_inputs(self) -> Mapping[str, int]:
        return {"task_ids": self.num_tasks}

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.prompt_tuning_init in ("RANDOM", "TEXT"):
            if self.prompt_tuning_init_state_dict_path and not self.inference_mode:
                raise ValueError(
                    f"prompt_tuning_init_state_dict_path is for other starts than {self.prompt_tuning_init}"
                )
            return self
        if not self.prompt_tuning_init_state_dict_path:
            raise ValueError(f"prompt_tuning_init {self.prompt_tuning_init} needs prompt_tuning_init_state_dict_path")
        if self.prompt_tuning_init != "ONLY_SOURCE_SHARED" and self.num_tasks != 1:
            raise ValueError(f"prompt_tuning_init {self.prompt_tuning_init} starts one task: num_tasks must be 1")
        return self

    @override
    def saved_forms(self) -> Sequence[Form]:
        tasks, ranks = self.num_tasks, self.num_ranks
        factors: Form = {"prefix_task_cols": (tasks, "tokens", ranks), "prefix_task_rows": (tasks, ranks, "width")}
        return tuple({**form, **factors} for form in super().saved_forms())
