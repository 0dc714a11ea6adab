"""Settings of the task ``question_ans``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from adapterkit.config.task import TaskConfig


class QuestionAnsConfig(TaskConfig):
    """The span of a context that answers a question, or none."""

    task_type: ClassVar[str] = "QUESTION_ANS"
    wrapper: ClassVar[str] = "adapterkit.tasks.question_ans.model:PeftModelForQuestionAnswering"
    auto_model: ClassVar[str] = "AutoModelForQuestionAnswering"
    pipeline: ClassVar[str] = "adapterkit.tasks.question_ans.pipeline:QuestionAnsPipeline"
    default_model: ClassVar[str] = "builtin:bert"
    default_metric: ClassVar[str] = "f1"
    data_fields: ClassVar[frozenset[str]] = frozenset({"doc_stride"})
    measures: ClassVar[tuple[str, ...]] = ("exact_match", "f1")
    smooths_labels: ClassVar[bool] = False
    default_columns: ClassVar[Mapping[str, str]] = {
        "id": "id",
        "context": "context",
        "question": "question",
        "answers": "answers",
    }

    name: Literal["question_ans"] = Field("question_ans", description="Name of the task.")
