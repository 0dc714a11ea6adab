"""What many trials of a process share: one frozen base model, lent to each and taken back as it was, and the data."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from adapterkit.config.run import ModelConfig, RunConfig
from adapterkit.config.task import TaskConfig
from adapterkit.injection.tuner import Tuner
from adapterkit.train.fingerprints import base_fingerprint
from adapterkit.train.inputs import Inputs, deciding, read_inputs
from adapterkit.train.models import load_base

Loader = Callable[..., PreTrainedModel]
Reader = Callable[[RunConfig, Any], Inputs]
logger = logging.getLogger(__name__)


class Lent(NamedTuple):
    """Stand-ins for `load_base` and `read_inputs`, for one trial."""

    load: Loader
    read: Reader


@dataclass
class _Held:
    """A base model as it was when it was loaded."""

    key: str
    model: PreTrainedModel
    settings: dict[str, Any]
    mark: str


@dataclass
class BasePool:
    """Keeps the base model and the inputs that were used last. One of each is enough: trials that share them follow
    each other."""

    load: Loader = load_base
    read: Reader = read_inputs
    loads: int = 0
    """How many times a model was really loaded."""
    _held: _Held | None = field(default=None, repr=False)
    _inputs: tuple[str, Inputs] | None = field(default=None, repr=False)

    @contextmanager
    def lending(self) -> Iterator[Lent]:
        """What one trial loads its parts by. What the trial did to the model is undone when the block ends.

        A model that cannot be given back as it was, or whose trial failed, is loaded again when it is next needed.
        """
        try:
            with _own_determinism():
                yield Lent(self._lend, self._lend_inputs)
        except BaseException:
            self._held = self._inputs = None
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
            self._held = _Held(key, model, copy.deepcopy(model.config.__dict__), _mark(model))
        return self._held.model

    def _lend_inputs(self, config: RunConfig, method: Any) -> Inputs:
        """The data as they were for the first trial, even if their files have changed since."""
        key = deciding(config, method)
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = None
            self._inputs = key, self.read(config, method)
        kept = self._inputs[1]
        return replace(kept, pipeline=copy.copy(kept.pipeline))  # a trial sets attributes of its own


@contextmanager
def _own_determinism() -> Iterator[None]:
    """``deterministic=true`` is for the whole process: one trial that asks for it does not decide for the next."""
    algorithms, kernels = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warns)
        torch.backends.cudnn.deterministic = kernels


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
    return _mark(model) == held.mark


def _mark(model: PreTrainedModel) -> str:
    """The fingerprint, which sees some numbers of each tensor, and how often PyTorch counted a change to any."""
    versions = [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    return f"{base_fingerprint(model)} {versions}"


pool = BasePool()
"""Of this process; workers of a launcher have one each, which lives as long as they do."""
