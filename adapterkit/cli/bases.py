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


def adapted(files: AdapterFiles, base: str, *, task: str | None = None, device: str | None = None) -> PeftModel:
    """The base model with the adapter.

    Args:
        files: the adapter; its head says how many labels there are.
        base: a directory, a Hub id, or a built-in model.
        task: whose head the base has; by default what the adapter's config says, else ``causal_lm``.
        device: ``"meta"`` loads neither's values.

    Raises:
        ConfigError: there is no such model, or task.
        CheckpointError: the adapter does not fit it; names what is missing, unexpected or of another shape.
        CheckFailedError: it fits, and was made on another model.
    """
    name = task or (files.config.task_type or "causal_lm").lower()
    chosen = tasks[name].model_validate({"name": name})
    options = _labels(files, chosen.wrapper_class().heads)
    model = load_base(ModelConfig(name_or_path=base), chosen, device=device, **options)
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
