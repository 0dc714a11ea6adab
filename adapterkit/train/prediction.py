"""What a finished run's adapter says of rows that need no answers."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from adapterkit.config.run import DataConfig, RunConfig
from adapterkit.errors import CapabilityError, ConfigError, DataError
from adapterkit.files import replacing
from adapterkit.registry import declared_as, implementation
from adapterkit.train import lengths
from adapterkit.train.columns import Roles
from adapterkit.train.console import logger
from adapterkit.train.data import load_rows
from adapterkit.train.pipeline import Encoded, Pipeline
from adapterkit.train.recall import Recalled, recall


@dataclass(frozen=True)
class Predicted:
    """Rows and what is said of them, in the order of the input."""

    rows: list[dict[str, Any]]
    """The columns of the input, and those of the prediction after them."""
    new: tuple[str, ...]
    """The columns of the prediction."""


def predict(run: Path, config: RunConfig, *, new_tokens: int | None = None) -> Predicted:
    """Predictions for the rows of ``config.data.path``.

    Args:
        run: the run's directory.
        config: its configuration, with the file in it.
        new_tokens: the longest text that is written, in tokens; None takes ``data.max_target_length``.

    Raises:
        CapabilityError: the task's pipeline cannot predict.
        ConfigError: the base cannot be loaded, or the task writes no texts and ``new_tokens`` is given.
        DataError: the file cannot be read, lacks a column, or has one of the prediction's.
        CheckpointError: the run has no adapter.
    """
    pipeline_class = _able(config)
    if new_tokens is not None and pipeline_class.generate is Pipeline.generate:
        raise ConfigError(f"--max-new-tokens: the task {config.task.name} writes no texts")
    recalled = recall(run, config)
    pipeline = recalled.pipeline
    if new_tokens is not None:
        pipeline.config = pipeline.config.model_copy(update={"max_target_length": new_tokens})
    roles = _asked(recalled)
    rows, examples = load_rows(_of_inputs(config.data, roles), roles)
    taken = [name for name in pipeline.predicts if name in rows.column_names]
    if taken:
        raise DataError(
            f"{config.data.path}: its column {taken[0]!r} is one of the prediction's: call it something else"
        )
    encoded = pipeline.unanswered(examples)
    for line in lengths.told(pipeline, [encoded]):
        logger.warning(line)
    said = pipeline.predictions(list(_found(recalled, encoded)), encoded)
    new = tuple(said[0])
    return Predicted([{**row, **more} for row, more in zip(rows, said, strict=True)], new)


def _able(config: RunConfig) -> type[Pipeline]:
    """The pipeline of a run's task."""
    pipeline: type[Pipeline] = implementation(type(config.task), "pipeline", Pipeline)
    if pipeline.predict is Pipeline.predict:
        raise CapabilityError(
            f"{declared_as(type(config.task))}: its pipeline {pipeline.__name__} cannot predict: it defines no predict"
        )
    return pipeline


def _asked(recalled: Recalled) -> Roles:
    """The roles that predictions need: the inputs that the run had."""
    pipeline, roles = recalled.pipeline, recalled.roles
    had = recalled.manifest.get("data", {}).get("roles", roles.required)
    return roles.only([role for role in pipeline.given if role in had], pipeline.may_be_given)


def _of_inputs(config: DataConfig, roles: Roles) -> DataConfig:
    """The same with the columns of inputs alone: what was an answer in the run may be missing."""
    columns = {role: column for role, column in config.columns.items() if role in roles.default}
    return config.model_copy(update={"columns": columns})


@torch.no_grad()
def _found(recalled: Recalled, encoded: Encoded) -> Iterator[Any]:
    """What the model makes of every row."""
    config, model, pipeline = recalled[:3]
    device, size = PartialState(cpu=config.trainer.use_cpu or None).device, config.trainer.per_device_eval_batch_size
    if not getattr(model.get_base_model(), "is_quantized", False):
        model.to(device)
    half = torch.bfloat16 if config.trainer.bf16 else torch.float16 if config.trainer.fp16 else None
    starts = range(0, len(encoded), size)
    for start in tqdm(starts, disable=not sys.stderr.isatty(), desc="predicting", leave=False):
        rows = encoded.__getitems__(list(range(start, min(start + size, len(encoded)))))
        batch = {name: tensor.to(device) for name, tensor in pipeline.batch(rows).items()}
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            yield from pipeline.predict(model, batch)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines or CSV, by the file's ending, whole or not at all.

    In CSV an object has a column for each of its keys, ``probabilities.positive``, and a list is JSON.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                flat = [dict(_flat(row)) for row in rows]
                writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)))
                writer.writeheader()
                writer.writerows(flat)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            as_text = isinstance(value, list | tuple)
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False, default=str) if as_text else value
