"""One frozen base model for many trials of a process: loaded once, lent to each, taken back as it was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from adapterkit.config.run import ModelConfig
from adapterkit.config.task import TaskConfig
from adapterkit.train.fingerprints import base_fingerprint
from adapterkit.train.models import load_base
from adapterkit.tuner import Tuner

Loader = Callable[..., PreTrainedModel]
logger = logging.getLogger(__name__)


@dataclass
class _Held:
    """A base model as it was when it was loaded."""

    key: str
    model: PreTrainedModel
    settings: dict[str, Any]
    fingerprint: str


@dataclass
class BasePool:
    """Keeps the base model that was used last. One is enough: trials that share a base follow each other."""

    load: Loader = load_base
    loads: int = 0
    """How many times a model was really loaded."""
    _held: _Held | None = field(default=None, repr=False)

    @contextmanager
    def lending(self) -> Iterator[Loader]:
        """A stand-in for `load_base`, for one trial. What the trial did to the model is undone when the block ends.

        A model that cannot be given back as it was, or whose trial failed, is loaded again when it is next needed.
        """
        try:
            yield self._lend
        except BaseException:
            self._held = None
            raise
        if self._held is not None and not _restored(self._held):
            logger.warning("the trial changed its base model: it is loaded again for the next one")
            self._held = None

    def _lend(self, config: ModelConfig, task: TaskConfig, **options: Any) -> PreTrainedModel:
        # a head that the checkpoint lacks is drawn from the seed, which is part of what decides the weights
        key = repr((config.model_dump(), task.auto_model, task.default_model, options, torch.initial_seed()))
        if self._held is None or self._held.key != key:
            self._held = None  # before the next one is loaded: there may be room for one only
            model = self.load(config, task, **options)
            self.loads += 1
            self._held = _Held(key, model, copy.deepcopy(model.config.__dict__), base_fingerprint(model))
        return self._held.model


def _restored(held: _Held) -> bool:
    """Take the adapters off, and back what a run sets on a model; whether the weights are those that were loaded."""
    model = held.model
    Tuner(model).unload(merge=False)
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()
    model.config.__dict__.clear()
    model.config.__dict__.update(copy.deepcopy(held.settings))
    model.requires_grad_(True).eval()
    for parameter in model.parameters():
        parameter.grad = None
    return base_fingerprint(model) == held.fingerprint


pool = BasePool()
"""Of this process; workers of a launcher have one each, which lives as long as they do."""
