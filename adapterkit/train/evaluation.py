"""The metrics of a finished run's adapter, on a split of its data or on other data."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import PrinterCallback

from adapterkit.config.run import RunConfig
from adapterkit.config.task import more_is_better
from adapterkit.errors import DataError
from adapterkit.train import lengths
from adapterkit.train.arguments import training_arguments
from adapterkit.train.console import logger
from adapterkit.train.data import Split, load_data, load_split
from adapterkit.train.pipeline import Encoded
from adapterkit.train.recall import Recalled, recall
from adapterkit.train.run import scores
from adapterkit.train.trainer import RunTrainer


@dataclass(frozen=True)
class Evaluated:
    """What an adapter is worth on some examples."""

    run: str
    split: str
    source: str
    fingerprint: str
    """Of the data, as `adapterkit.train.data.Data.fingerprint`."""
    examples: int
    metric: str
    """The one that the run is judged by."""
    greater_is_better: bool
    metrics: dict[str, float]


def evaluate(run: Path, config: RunConfig, *, split: str | None = None, elsewhere: bool = False) -> Evaluated:
    """The metrics of a run's adapter. For the run's own splits they are the numbers that the run wrote.

    Args:
        run: the run's directory.
        config: its configuration, with what is to be otherwise.
        split: ``train``, ``validation`` or ``test``; None takes the first that is there from the back.
        elsewhere: whether ``config`` names other data than the run's: no validation split is held out of them.

    Raises:
        ConfigError: the base cannot be loaded.
        DataError: a file, split or column is not there, or has a label that training had not.
        CheckpointError: the run has no adapter.
    """
    recalled = recall(run, config)
    chosen = load_split(config.data, recalled.roles, split) if elsewhere else _own_split(recalled, split)
    recalled.pipeline.check(chosen.examples, f"{chosen.source} ({chosen.name})")
    encoded = recalled.pipeline.features(chosen.examples)
    for line in lengths.told(recalled.pipeline, [encoded]):
        logger.warning(line)
    metrics, metric = _scored(recalled, encoded)
    better = more_is_better(metric, config.trainer, config.task)
    size = len(encoded.examples)
    return Evaluated(str(run), chosen.name, chosen.source, chosen.fingerprint, size, metric, better, metrics)


def _own_split(recalled: Recalled, name: str | None) -> Split:
    """A split as the run read it.

    Raises:
        DataError: it is not there.
    """
    data = load_data(recalled.config.data, recalled.roles, recalled.pipeline.builtin)
    before = recalled.manifest.get("data", {}).get("fingerprint")
    if before != data.fingerprint:
        logger.warning("%s: the data are not those that the run was trained on: they have changed since", data.source)
    splits = data.splits()
    chosen = name or list(splits)[-1]
    if chosen not in splits:
        raise DataError(f"{data.source} has no {chosen} split. Splits: {', '.join(splits)}")
    return Split(chosen, splits[chosen], data.source, data.fingerprint)


def _scored(recalled: Recalled, encoded: Encoded) -> tuple[dict[str, float], str]:
    """The metrics, and the name of the one that counts."""
    config, model, pipeline = recalled[:3]
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(
            config, Path(folder), label_names=pipeline.label_names, default_metric=pipeline.default_metric
        )
        trainer = RunTrainer(
            model,
            args,
            pipeline=pipeline,
            train=encoded,
            validation=encoded,
            adapter_name=config.adapter_name,
            keep=None,
            callbacks=[],
        )
        trainer.remove_callback(PrinterCallback)
        return scores(trainer, encoded), args.metric_for_best_model.removeprefix("eval_")
