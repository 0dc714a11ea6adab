"""The data side of a run: tokenizer, examples, and the pipeline that has learnt from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError
from adapterkit.registry import implementation
from adapterkit.train.data import Data, load_data
from adapterkit.train.models import load_tokenizer
from adapterkit.train.pipeline import Encoded, Pipeline

logger = logging.getLogger("adapterkit")

_USELESS, _DOUBTFUL = 0.9, 0.3  # shares of unknown tokens
_LOOK_AT, _LETTERS = 200, 2000  # examples, and of each of their texts, by which the tokenizer is judged


@dataclass(frozen=True)
class Inputs:
    """What a run learns from."""

    pipeline: Pipeline
    data: Data
    model_options: dict[str, Any]
    """What the data say about the model: options of its configuration such as ``num_labels``."""

    _features: dict[str, Encoded] = field(default_factory=dict)

    def features(self, split: str) -> Encoded:
        """A split, tokenised when it is first asked for: the pipeline fits the base model by then."""
        if split not in self._features:
            self._features[split] = self.pipeline.features(self.data.splits()[split])
        return self._features[split]


def read_inputs(config: RunConfig, method: Any) -> Inputs:
    """Load tokenizer and data.

    Args:
        config: the run.
        method: its method's config, which may read columns of its own.

    Raises:
        ConfigError: there is no such tokenizer, or it does not know the texts.
        DataError: a file, split or column is not there.
    """
    task = config.task
    pipeline_class: type[Pipeline] = implementation(type(task), "pipeline", Pipeline)
    roles = pipeline_class.roles(task).beside(method.row_inputs, method.peft_type)
    tokenizer = load_tokenizer(config.model, task, **pipeline_class.tokenizer_options)
    data = load_data(config.data, roles, pipeline_class.builtin)
    pipeline = pipeline_class(config.data, tokenizer)
    pipeline.row_inputs = tuple(method.row_inputs)
    options = pipeline.learn(data)
    _check_known(pipeline, data)
    return Inputs(pipeline, data, options)


def _check_known(pipeline: Pipeline, data: Data) -> None:
    """
    Raises:
        ConfigError: the tokenizer knows next to nothing of the training texts.
    """
    share, name = _unknown_share(pipeline, data.train), pipeline.tokenizer.name_or_path
    said = f"{share:.0%} of the tokens of the training texts are unknown to the tokenizer of {name}"
    if share >= _USELESS:
        raise ConfigError(f"{said}; set model.tokenizer to one for these texts")
    if share >= _DOUBTFUL:
        logger.warning("%s", said)


def _unknown_share(pipeline: Pipeline, examples: Dataset) -> float:
    """Share of unknown tokens in the first texts; 0 for a tokenizer that has no token for what it does not know."""
    tokenizer = pipeline.tokenizer
    unknown = tokenizer.unk_token_id
    columns = [name for name in pipeline.texts if name in examples.column_names]
    if unknown is None or not columns:
        return 0.0
    rows = examples.select(range(min(len(examples), _LOOK_AT)))
    values = [value for name in columns for value in rows[name]]
    texts = [(" ".join(value) if isinstance(value, list) else value)[:_LETTERS] for value in values]
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [token for ids in found for token in ids]
    return tokens.count(unknown) / max(len(tokens), 1)


def deciding(config: RunConfig, method: Any) -> str:
    """What decides the inputs of a run: two runs of one process for which it is equal can share them."""
    virtual_tokens = getattr(method, "num_virtual_tokens", 0)  # leave less room for an example's own
    parts = (config.model, config.data, config.task, sorted(method.row_inputs.items()), virtual_tokens)
    return repr([part.model_dump() if hasattr(part, "model_dump") else part for part in parts])
