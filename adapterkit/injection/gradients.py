"""Which adapters receive gradients, switched without looking through their modules each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from adapterkit.nn.adapter import Adapter
from adapterkit.nn.module import modules_in


class Host(Protocol):
    """What is asked of the tuner."""

    def parts(self, name: str) -> Iterator[tuple[str, nn.Module]]: ...


class Gradients:
    """Switches gradients on and off for all parameters of an adapter.

    Where they are is looked up once, and kept: the dicts of its modules, and the names in them. The parameters may be
    exchanged for others; who exchanges modules says so with `forget`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self._partly_fixed: dict[str, list[Adapter]] = {}

    def switch(self, name: str, on: bool) -> None:
        """Whether the parameters of adapter ``name`` receive gradients; those that are never trained receive none."""
        if name not in self._places:
            self._look_up(name)
        try:
            for held, key in self._places[name]:
                held[key].requires_grad = on
        except KeyError:  # a parametrization has taken a parameter away, and put another one elsewhere
            self._look_up(name)
            self.switch(name, on)
            return
        for part in self._partly_fixed[name] if on else ():
            for parameter in part.fixed:
                parameter.requires_grad = False

    def _look_up(self, name: str) -> None:
        parts = [part for _, part in self._host.parts(name)]
        held: list[Any] = [module._parameters for part in parts for module in modules_in(part)]
        self._places[name] = [
            (own, key) for own in held for key, p in own.items() if p is not None and p.is_floating_point()
        ]
        self._partly_fixed[name] = [part for part in parts if isinstance(part, Adapter) and part.fixed]

    def forget(self, name: str) -> None:
        """Look the parameters of an adapter up again when they are next needed."""
        self._places.pop(name, None)
        self._partly_fixed.pop(name, None)
