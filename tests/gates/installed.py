"""Every installed layer method, as it is on linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterkit.config.layer import LayerConfig
from adapterkit.registry import methods


def methods_on_linear() -> list[str]:
    """The names of the methods that adapt linear layers."""
    kinds = {n: c(**c.example).adapter_class().kinds for n, c in methods.items() if issubclass(c, LayerConfig)}
    return [name for name, found in kinds.items() if found & {"linear", "any"}]


def on_linear(name: str, targets: Sequence[str]) -> Any:
    """The method's example, on these targets."""
    config = methods[name](**methods[name].example)
    subsets = {field: [] for field in getattr(config, "subset_fields", ())}
    return config.model_copy(update={"target_modules": list(targets), **subsets})
