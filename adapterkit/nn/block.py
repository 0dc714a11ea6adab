"""Adapters around whole blocks, such as attention: called by keyword, with several inputs and outputs."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adapterkit.nn.adapter import LayerAdapter

Change = Callable[[Callable[[Any], Any], Any, Mapping[str, Any]], Any]
"""From the block as a function of its first input, this input and the others by name, to its first output."""


class BlockAdapter(LayerAdapter, ABC):
    """One adapter's change to the first output of a block, which it may draw all of the block's inputs into."""

    kinds = frozenset({"other"})
    mergeable = False

    @abstractmethod
    def adapt_block(self, y: Tensor, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Shape ``(rows, ...)`` to the same.

        Args:
            y: the block's first output.
            x: its first input.
            inputs: its other inputs by name, of the same rows.
        """

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return self.adapt_block(y, x, {})


@dataclass(frozen=True)
class InCall:
    """A `BlockAdapter` in one call of its block."""

    adapter: BlockAdapter
    inputs: Mapping[str, Any]

    def adapt_input(self, x: Tensor) -> Tensor:
        return self.adapter.adapt_input(x)

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return self.adapter.adapt_block(y, x, self.inputs)


def in_call(adapter: Any, inputs: Mapping[str, Any]) -> Any:
    """The adapter as it is in a call with these inputs."""
    return InCall(adapter, inputs) if inputs and isinstance(adapter, BlockAdapter) else adapter


def rows_of(value: Any, index: Tensor, rows: int) -> Any:
    """The entries ``index`` of everything in ``value`` that has one for each of ``rows``."""
    if isinstance(value, Tensor):
        return value[index.to(value.device)] if value.ndim and len(value) == rows else value
    if isinstance(value, tuple):
        return tuple(rows_of(part, index, rows) for part in value)
    if isinstance(value, Mapping):
        return {name: rows_of(part, index, rows) for name, part in value.items()}
    return value


def call_block(block: nn.Module, change: Change, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A block's outputs, the first of them changed."""
    if len(args) == 1:
        first, x, inputs = None, args[0], kwargs
    else:
        names = list(inspect.signature(block.forward).parameters)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        first, x = names[0], inputs.pop(names[0])
    others: list[tuple[Any, ...]] = []

    def base(x: Any) -> Any:
        output = block(x, **inputs) if first is None else block(**{first: x}, **inputs)
        if not isinstance(output, tuple):
            return output
        others.append(output[1:])
        return output[0]

    y = change(base, x, inputs)
    return (y, *others[0]) if others else y
