"""Settings of the task ``seq_2_seq_lm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from adapterkit.config.task import TaskConfig


class Seq2SeqLmConfig(TaskConfig):
    """A text made from another text: translation, summary, rewriting."""

    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    wrapper: ClassVar[str] = "adapterkit.tasks.seq_2_seq_lm.model:PeftModelForSeq2SeqLM"
    auto_model: ClassVar[str] = "AutoModelForSeq2SeqLM"
    pipeline: ClassVar[str] = "adapterkit.tasks.seq_2_seq_lm.pipeline:Seq2SeqLmPipeline"
    default_model: ClassVar[str] = "builtin:t5"
    default_metric: ClassVar[str] = "rougeL"
    data_fields: ClassVar[frozenset[str]] = frozenset({"max_target_length"})
    measures: ClassVar[tuple[str, ...]] = ("rougeL", "exact_match")
    default_columns: ClassVar[Mapping[str, str]] = {"source": "source", "target": "target"}

    name: Literal["seq_2_seq_lm"] = Field("seq_2_seq_lm", description="Name of the task.")
