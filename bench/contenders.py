"""The two libraries behind PEFT's public names."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.models import build, output
from bench.rows import OURS, PEFT

NAMES = (PEFT, OURS)


def module(name: str) -> Any:
    """A library, imported without the warnings of its optional parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def load(name: str, model: nn.Module, directory: Path, adapter: str = "default", *, trainable: bool = False) -> Any:
    """A base model with the adapter in ``directory``; the base itself for ``bare``."""
    if name == "bare":
        return model.requires_grad_(False)
    wrapped = module(name).PeftModel.from_pretrained(model, directory, adapter_name=adapter, is_trainable=trainable)
    return wrapped.train(trainable)


def activate(model: Any, names: Sequence[str]) -> None:
    """Make several adapters active at once, frozen: in PEFT, only the tuner takes a list."""
    model.base_model.set_adapter(list(names), inference_mode=True)


def load_all(
    model: str,
    directory: Path,
    adapter: str = "default",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    bare: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Every contender over a base of its own, with the same weights."""
    names = ["bare", *NAMES] if bare else NAMES
    return {n: load(n, build(model, device, dtype, **changes), directory, adapter, trainable=trainable) for n in names}


def forward(model: Any, inputs: dict[str, Any]) -> Callable[[], Tensor]:
    """A forward without gradients, to be called again and again."""

    def run() -> Tensor:
        with torch.no_grad():
            return output(model(**inputs))

    return run


def silent(work: Callable[[], Any]) -> Callable[[], None]:
    """The same work, its result dropped: a number would be taken for seconds."""

    def run() -> None:
        work()

    return run
