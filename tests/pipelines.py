"""Pipelines over a few examples, with the built-in tokenizers."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from adapterkit.config.run import DataConfig, ModelConfig
from adapterkit.registry import resolve, tasks
from adapterkit.train.data import Data
from adapterkit.train.models import load_tokenizer
from adapterkit.train.pipeline import Pipeline


def data_of(rows: list[dict[str, Any]]) -> Data:
    """The same examples as training and validation split."""
    split = Dataset.from_list(rows)
    return Data(split, split, None, "here", "")


def pipeline_of(task: str, data: Data | None = None, *, model: str | None = None, **options: Any) -> Pipeline:
    """The pipeline of a task, which has learnt what ``data`` says; with the tokenizer of ``model``, or the task's."""
    config, source = tasks[task](), ModelConfig(name_or_path=model)
    pipeline: Pipeline = resolve(config.pipeline)(DataConfig(**options), load_tokenizer(source, config))
    if data is not None:
        pipeline.learn(data)
    return pipeline
