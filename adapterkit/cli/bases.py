"""A saved adapter on its base model. Imports torch."""

from __future__ import annotations

import warnings

from adapterkit.checkpoint.identity import OtherBaseWarning
from adapterkit.config.run import ModelConfig
from adapterkit.errors import CheckFailedError
from adapterkit.model import PeftModel
from adapterkit.ondisk.names import plain
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.registry import tasks
from adapterkit.train.models import load_base


def adapted(files: AdapterFiles, base: str, *, device: str | None = None) -> PeftModel:
    """The base model with the adapter.

    Args:
        files: the adapter; its task decides which head the base has, and its head how many labels.
        base: a directory, a Hub id, or a built-in model.
        device: ``"meta"`` loads neither's values.

    Raises:
        ConfigError: there is no such model.
        CheckpointError: the adapter does not fit it; names what is missing, unexpected or of another shape.
        CheckFailedError: it fits, and was made on another model.
    """
    task_type = (files.config.task_type or "causal_lm").lower()
    task = tasks[task_type].model_validate({"name": task_type})
    options = _labels(files, task.wrapper_class().heads)
    model = load_base(ModelConfig(name_or_path=base), task, device=device, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseWarning)
        warnings.filterwarnings("ignore", "for .*copying from a non-meta parameter")  # as it is meant, with "meta"
        try:
            found: PeftModel = PeftModel.from_pretrained(model, files.directory)
        except OtherBaseWarning as warning:
            raise CheckFailedError(str(warning)) from None
    return found


def _labels(files: AdapterFiles, heads: tuple[str, ...]) -> dict[str, int]:
    """How many outputs a saved head has, which decides what the base is built with."""
    for key, entry in files.header.tensors.items():
        module, _, last = plain(key).rpartition(".")
        if last == "weight" and module in heads and module in ("classifier", "score"):
            return {"num_labels": entry.shape[0]}
    return {}
