"""What a task does with data: columns to features, features to batches, predictions to metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterkit.config.run import DataConfig
from adapterkit.config.task import TaskConfig
from adapterkit.errors import CapabilityError, ConfigError, DataError
from adapterkit.train.columns import Roles
from adapterkit.train.data import Data

Batch = dict[str, Tensor]
IGNORED = -100
"""Label of positions that have none."""


@dataclass(frozen=True)
class Encoded:
    """One split, tokenised: what a data loader reads."""

    rows: Dataset
    """Features, one row an input of the model."""

    examples: Dataset
    """The examples that the features were made from."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index]
        return row

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Several rows at once, which the data loader prefers."""
        columns = self.rows[indices]
        return [{name: values[i] for name, values in columns.items()} for i in range(len(indices))]


class Pipeline(ABC):
    """The data side of a task. A task names its pipeline in `TaskConfig.pipeline`."""

    required: ClassVar[tuple[str, ...]]
    """Roles, keys of `TaskConfig.default_columns`, that the data must have a column for."""

    also: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Role to other names that its column may have in the wild."""

    stratify_by: ClassVar[str | None] = None
    """Role whose values have equal shares in a validation split that has to be made."""

    group_by: ClassVar[str | None] = None
    """Role whose equal values stay in one split."""

    texts: ClassVar[tuple[str, ...]] = ()
    """Roles that hold texts, or lists of texts: nothing else may stand there."""

    numbers: ClassVar[tuple[str, ...]] = ()
    """Roles that hold numbers."""

    default_metric: str | None = None
    """The metric that suits the data, once `learn` has seen them; None stands for the task's."""

    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    """Inputs of the model that are labels."""

    smoothing_shift: bool | None = None
    """Whether labels are shifted against logits where they are smoothed; None where they cannot be smoothed."""

    generates: ClassVar[bool] = False
    """Whether predictions are made by `generate` rather than taken from the model's outputs."""

    baseline_name: str = "untrained model"
    """What `baseline` is the score of."""

    tokenizer_options: ClassVar[Mapping[str, Any]] = {}
    """What the tokenizer is loaded with."""

    copies: ClassVar[int] = 1
    """How often every row stands in a batch: all of them one after another, then all of them again."""

    learnt: ClassVar[tuple[str, ...] | None] = None
    """Attributes of JSON types that `learn` sets, and that a finished run hands on with its adapter. None, where there
    is a `learn`, has the run's data read again."""

    given: ClassVar[tuple[str, ...]] = ()
    """Roles that a prediction is made from, as far as the run had them; all others are answers."""

    may_be_given: ClassVar[tuple[str, ...]] = ()
    """Roles that a prediction is made from where they are there."""

    predicts: ClassVar[tuple[str, ...]] = ("prediction",)
    """The columns that `predictions` may make."""

    padding_side: Literal["left", "right"] = "right"
    """Where rows of tokens are padded, whatever the tokenizer says. On the right every token keeps its index, its
    position, and its distance from virtual tokens; rows that are to be gone on from need their padding on the left."""

    row_inputs: tuple[str, ...] = ()
    """Columns of integers that the method takes beside the base model's inputs."""

    def __init__(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.max_length = min(config.max_length, tokenizer.model_max_length)

    @classmethod
    def roles(cls, task: TaskConfig) -> Roles:
        """The columns that the task reads."""
        return Roles(
            default=task.default_columns,
            required=cls.required,
            also=cls.also,
            stratify_by=cls.stratify_by,
            group_by=cls.group_by,
            texts=cls.texts,
            numbers=cls.numbers,
        )

    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]] | None:
        """The task's built-in examples by split, or None."""
        return None

    def fit_into(self, base: Any, virtual_tokens: int) -> None:
        """Cut inputs to what the base model has positions for, beside the virtual tokens of a prompt.

        Raises:
            ConfigError: no token of a text is left.
        """
        positions = getattr(base.config, "max_position_embeddings", None)
        special = self.tokenizer.num_special_tokens_to_add()
        if self.max_length <= special:
            raise ConfigError(
                f"data.max_length={self.config.max_length}: no token of a text fits in beside {special} special ones"
            )
        if isinstance(positions, int):
            self.max_length = min(self.max_length, positions - virtual_tokens)
        if self.max_length <= special:
            raise ConfigError(
                f"method.num_virtual_tokens={virtual_tokens}: the model has {positions} positions, which leaves no "
                f"token of a text beside {special} special ones"
            )

    def learn(self, data: Data) -> dict[str, Any]:
        """What the data says about the model: options of its configuration such as ``num_labels``."""
        return {}

    def memory(self) -> dict[str, Any]:
        """What was learnt, by attribute."""
        return {name: getattr(self, name) for name in self.learnt or ()}

    def remember(self, memory: Mapping[str, Any]) -> bool:
        """Take over what a pipeline of this class has learnt; whether that is all of it."""
        known = self.learnt if type(self).learn is not Pipeline.learn else ()
        if known is None or not set(known) <= memory.keys():
            return False
        for name in known:
            setattr(self, name, memory[name])
        return True

    def check(self, examples: Dataset, source: str) -> None:
        """Look at examples that were not there when the pipeline learnt.

        Raises:
            DataError: they have what it does not know: another label.
        """
        return

    @abstractmethod
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The features of some examples, both in columns; may return more or fewer rows than it is given."""

    def cut(self, examples: Dataset) -> Mapping[str, str]:
        """The columns of features in which texts are cut off, and the key of ``data`` that says where."""
        return {"input_ids": "max_length"}

    @abstractmethod
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """One batch of inputs for the model, padded to its longest row."""

    def reduce(self, outputs: Any, batch: Batch) -> Any:
        """What is kept of a batch's outputs until `score`; called on the device.

        Args:
            outputs: the model's outputs but the loss, one tensor or several; or what `generate` returned.
            batch: what the model was given.
        """
        return outputs

    @abstractmethod
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        """Metrics of the predictions for a whole split, in numpy arrays padded with -100."""

    def baseline(self, train: Encoded, held_out: Encoded) -> dict[str, float] | None:
        """The metrics of an answer that needs no training; None stands for the model before training."""
        return None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Loss and outputs of a batch, for tasks whose model computes none itself."""
        outputs = model(**batch)
        return outputs["loss"], outputs

    @property
    def computes_loss(self) -> bool:
        """Whether `loss` is to be used instead of the model's own."""
        return type(self).loss is not Pipeline.loss

    def generate(self, model: Any, batch: Batch) -> Tensor:
        """Token ids that the model writes for a batch; used where `generates` is set."""
        raise NotImplementedError

    # -- predicting: a task that wants it says `given`, and defines these ---------------------------------------------

    def unanswered(self, examples: Dataset) -> Encoded:
        """The features of examples that have no answers: something stands in the place of those."""
        return self.features(examples)

    def predict(self, model: Any, batch: Batch) -> Sequence[Any]:
        """What the model makes of each row of a batch of `unanswered`, on any device, in inference."""
        raise CapabilityError(f"a {type(self).__name__} cannot predict: it defines no predict")

    def predictions(self, found: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """What is said of every example, in JSON types under the names of `predicts`.

        Args:
            found: what `predict` made of the rows, in their order.
            encoded: the rows, and the examples that they were made of.
        """
        return [{"prediction": value} for value in found]

    def inputs(self, batch: Batch) -> Batch:
        """A batch without labels."""
        return {name: value for name, value in batch.items() if name not in self.label_names}

    # -----------------------------------------------------------------------------------------------------------------

    def features(self, examples: Dataset) -> Encoded:
        """A split, tokenised, in memory.

        Raises:
            DataError: nothing is left of its texts.
        """
        rows = examples.map(
            self._encode_one if self.row_inputs else self.encode,
            batched=True,
            batch_size=1 if self.row_inputs else 1000,
            remove_columns=examples.column_names,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=f"{examples._fingerprint}-features",
        )
        if not len(rows):
            raise DataError("no features can be made from this split: are its texts empty?")
        return Encoded(rows, examples)

    def _encode_one(self, example: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The features of one example, and in each row the integers that go with it."""
        encoded = self.encode(example)
        count = len(next(iter(encoded.values())))
        return {**encoded, **{name: example[name] * count for name in self.row_inputs}}

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """`collate`, and the integers that the method takes."""
        added = {name: torch.tensor([row[name] for row in rows] * self.copies) for name in self.row_inputs}
        return {**self.collate(rows), **added}

    def added(self, batch: Batch) -> Batch:
        """The part of a batch that the base model does not know."""
        return {name: batch[name] for name in self.row_inputs}

    def padded(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> Batch:
        """Rows of token ids as tensors of one length; only what the tokenizer's model takes."""
        wanted = names or [name for name in self.tokenizer.model_input_names if name in rows[0]]
        columns = {name: [row[name] for row in rows] for name in wanted}
        padded = self.tokenizer.pad(columns, padding_side=self.padding_side)
        return {
            name: torch.tensor(padded[name]) for name in wanted
        }  # the tokenizer's own tensors take four times as long

    def padded_labels(self, labels: Sequence[Sequence[int]]) -> Tensor:
        """Label sequences as one tensor, padded with -100 on the side on which inputs are padded."""
        longest = max(map(len, labels))
        left = self.padding_side == "left"
        padding = [[IGNORED] * (longest - len(row)) for row in labels]
        return torch.tensor(
            [pad + list(row) if left else list(row) + pad for pad, row in zip(padding, labels, strict=True)]
        )


def own_positions(outputs: Tensor, length: int) -> Tensor:
    """The outputs of the ``length`` positions of the input, without those of virtual tokens put before it.

    Args:
        outputs: of shape (batch, at least length, ...).
        length: number of input positions.
    """
    return outputs[:, outputs.shape[1] - length :]


def first(outputs: Any) -> Tensor:
    """The first of a model's outputs: logits come alone or before hidden states."""
    value = outputs[0] if isinstance(outputs, tuple | list) else outputs
    assert isinstance(value, Tensor)
    return value


def label_options(labels: Sequence[str]) -> dict[str, Any]:
    """Options of a model's configuration that give it these classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
