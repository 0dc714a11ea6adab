"""A module that is trained whole: one copy per adapter, the original kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adapterkit.errors import CapabilityError
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.selection import Routes, Selection
from adapterkit.nn.storage import fetching, is_sharded


class CopiedLayer(nn.Module):
    """Stands where ``original_module`` stood, and runs the active adapter's copy of it."""

    def __init__(self, original_module: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()  # adapter name -> copy
        self.selection = selection

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("original_module", "modules_to_save"):
                raise
            return getattr(self.active_module(), name)

    def active_module(self) -> nn.Module:
        """The copy that the next forward uses, or the original."""
        return self._of(self.selection.active) if self.selection.enabled else self.original_module

    def _of(self, names: Sequence[str]) -> nn.Module:
        for name in reversed(names):
            if name in self.modules_to_save:
                return self.modules_to_save[name]
        return self.original_module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.selection.past is not None:
            self.selection.recall()
        if self.selection.enabled and self.selection.routes is not None:
            if not args:
                raise CapabilityError(
                    f"adapter_names needs a positional input to {type(self.original_module).__name__}"
                )
            return self._routed(self.selection.routes, *args, **kwargs)
        return self.active_module()(*args, **kwargs)

    def _routed(self, routes: Routes, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Each row through its own adapter's copy; the rows of no copy through the original."""
        y = self.original_module(x, *args, **kwargs)
        if not isinstance(y, torch.Tensor):
            raise CapabilityError(f"adapter_names needs a tensor from {type(self.original_module).__name__}")
        for name, index in routes.fit(x.shape[0]).rows.items():
            if name in self.modules_to_save:
                index = index.to(x.device)
                y = y.index_copy(0, index, self.modules_to_save[name](x[index], *args, **kwargs).to(y.dtype))
        return y


def trainable_copy(module: nn.Module, leader: nn.Module | None = None) -> nn.Module:
    """A copy to be trained, without adapters that layers inside of it have; its weight is that of ``leader``, another
    copy, if there is one.

    Raises:
        CapabilityError: accelerate has offloaded the module, and would fetch its copy from the same place, or processes
            share it out.
    """
    what = f"a {type(module).__name__}"
    if any(fetching(each) is not None for each in module.modules()):
        raise CapabilityError(f"{what} is offloaded and cannot be trained whole: keep it on a device")
    if any(is_sharded(parameter) for parameter in module.parameters()):
        raise CapabilityError(f"{what} is sharded and cannot be trained whole: make the adapter before sharding")
    fresh = copy.deepcopy(module)
    for parent in list(fresh.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, AdaptedLayer):
                child.unmerge()
                child = child.base_layer
            parent._modules[name] = child.original_module if isinstance(child, CopiedLayer) else child
    fresh.requires_grad_(True)
    if leader is not None:
        fresh.weight = leader.weight
    return fresh
