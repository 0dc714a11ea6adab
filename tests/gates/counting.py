"""Counts that are the same on every machine: kernels, bytes kept for backward, visits of modules, calls."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Kernels(TorchDispatchMode):
    """The names of the operations within the block that compute: neither views nor bare allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (_is_view(func) or func.__name__.split(".")[0] in _ALLOCATES):
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    alias = returns[0].alias_info if returns else None
    unsafe = func.__name__.split(".")[0] in ("_unsafe_view", "detach", "alias")
    return unsafe or (alias is not None and not alias.is_write)


def kernels(work: Callable[[], Any]) -> list[str]:
    """What ``work`` computes, kernel by kernel."""
    with Kernels() as counted:
        work()
    return counted.names


class Allocations(TorchDispatchMode):
    """The most numbers in one tensor that the operations within the block made, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_memory(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and _memory(t) not in given]
        self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def saved(work: Callable[[], Any], own: nn.Module) -> list[Tensor]:
    """The tensors that ``work`` keeps for backward, one for each piece of memory, less the parameters of ``own``.

    ``work`` returns the tensor from which backward starts: what functions of their own keep past PyTorch's knowledge is
    found along its graph.
    """
    known = {p.untyped_storage().data_ptr() for p in [*own.parameters(), *own.buffers()]}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known:
            found.setdefault(pointer, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    for node in _nodes(result.grad_fn):
        for tensor in tree_leaves(getattr(node, "__dict__", {})):
            if isinstance(tensor, Tensor):
                keep(tensor)
    return list(found.values())


def _nodes(start: Any) -> set[Any]:
    """The nodes of a graph for backward."""
    found, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return found


def saved_bytes(work: Callable[[], Any], own: nn.Module) -> int:
    """Bytes that ``work`` keeps for backward."""
    return sum(tensor.untyped_storage().nbytes() for tensor in saved(work, own))


class _Watched(dict[str, Any]):
    """The children of a module, which note that somebody goes through them."""

    def __init__(self, children: dict[str, Any], note: Callable[[], None]) -> None:
        super().__init__(children)
        self.note = note

    def __iter__(self) -> Iterator[str]:
        self.note()
        return super().__iter__()

    def items(self) -> Any:
        self.note()
        return super().items()

    def values(self) -> Any:
        self.note()
        return super().values()

    def keys(self) -> Any:
        self.note()
        return super().keys()


class Visits:
    """How often somebody went through the children of each module of a model, by the module's name."""

    def __init__(self, model: nn.Module) -> None:
        self.counts: dict[str, int] = {}
        for name, module in list(model.named_modules()):
            self.counts[name] = 0
            module.__dict__["_modules"] = _Watched(module._modules, lambda name=name: self._note(name))

    def _note(self, name: str) -> None:
        self.counts[name] += 1

    @contextmanager
    def of(self) -> Iterator[dict[str, int]]:
        """Inside the block the counts start from 0; those that stay 0 are left out in the end."""
        self.counts = dict.fromkeys(self.counts, 0)
        found: dict[str, int] = {}
        yield found
        found.update({name: count for name, count in self.counts.items() if count})


def steps(work: Callable[[], Any]) -> int:
    """How many instructions of Python ``work`` takes: every loop counts, whatever it calls."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return note

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # what it would call is nobody's work
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def calls(work: Callable[[], Any]) -> int:
    """How many functions ``work`` calls, Python's and C's."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count
