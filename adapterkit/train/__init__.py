"""Training: one configuration to one run directory. Imports torch only when something of it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "load_run": "adapterkit.train.reload",
    "load_config": "adapterkit.train.reload",
    "load_base": "adapterkit.train.models",
    "load_tokenizer": "adapterkit.train.models",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
