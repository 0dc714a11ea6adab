"""What a forward keeps for the ones that follow, and how it is seen that it no longer holds.

Frozen adapters do the same in every forward, so what can be made of their tensors once (cast, laid out by rows, put
side by side) is made once. It belongs to a layer (`LayerView.kept`). Tensors that are trained are never kept from, as
some optimizers write to them without PyTorch's noticing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C import _are_functorch_transforms_active as _are_transforms_active
from torch._C import _is_any_autocast_enabled
from torch.compiler import is_compiling

from adapterkit.nn.low_rank import type_of_products
from adapterkit.nn.module import modules_in
from adapterkit.nn.selection import Selection


class Sources:
    """The tensors, scales and modes of some adapters, as they were.

    A tensor is the same if it is the same object at the same place, lies where it lay, was not written to and is not
    trained. A write past PyTorch's counting (through ``.data``, or to memory that NumPy shares) is not noticed;
    ``.copy_()`` under `torch.no_grad` and `load_state_dict` are.
    """

    __slots__ = ("_aliases", "_holders", "_names", "_tensors", "_values")

    def __init__(self, adapters: Iterable[nn.Module]) -> None:
        self._holders: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []
        self.watch(place for adapter in adapters for place in _places(adapter))
        tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._tensors = [(tensor, tensor._version, tensor.data_ptr()) for tensor in tensors]
        self._aliases = [tensor.detach() for tensor in tensors]  # alive: nothing else takes their addresses

    @classmethod
    def joined(cls, many: Iterable[Sources]) -> Sources:
        """All of them, in the order in which they lie in memory: what is read of each is little, and far apart."""
        joined, parts = cls(()), list(many)
        places = [place for part in parts for place in zip(part._holders, part._names, part._values, strict=True)]
        places.sort(key=lambda place: id(place[0]))
        joined._holders, joined._names, joined._values = ([*column] for column in zip(*places, strict=True))
        joined._tensors = sorted((seen for part in parts for seen in part._tensors), key=lambda seen: id(seen[0]))
        joined._aliases = [alias for part in parts for alias in part._aliases]
        return joined

    def watch(self, places: Iterable[tuple[Any, str]]) -> None:
        """Look at what stands under these names of these dicts, too."""
        for holder, name in places:
            self._holders.append(holder)
            self._names.append(name)
            self._values.append(holder.get(name))

    def are_same(self) -> bool:
        """Whether nothing has changed."""
        if not all(map(is_, map(dict.get, self._holders, self._names), self._values)):
            return False
        for tensor, version, address in self._tensors:
            if tensor._version != version or tensor.data_ptr() != address or tensor.requires_grad:
                return False
        return True


def _places(adapter: nn.Module) -> Iterable[tuple[dict[str, Any], str]]:
    """Where an adapter holds what its numbers come from: modules, tensors, and numbers such as a scale."""
    for module in modules_in(adapter):
        for holder in (module._modules, module._parameters, module._buffers):
            yield from ((holder, name) for name, value in holder.items() if value is not None)
        own = module.__dict__
        yield from ((own, name) for name, value in own.items() if isinstance(value, float) or name == "scaling")
    yield adapter.__dict__, "training"


class Kept:
    """What a forward left. Copies and pickles of a layer are without it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(None), ()


class KeptChain(Kept):
    """How the active adapters of a linear layer are computed, found once.

    Args:
        chain: the adapters.
        takes: the type of the inputs that it is for.
        thin: the type of its products, where the number of rows decides it (`type_of_products`).
    """

    __slots__ = ("chain", "names", "places", "takes", "thin")

    def __init__(self, chain: Sequence[nn.Module], takes: torch.dtype, thin: torch.dtype | None = None) -> None:
        self.chain, self.takes, self.thin = list(chain), takes, thin
        self.names: Sequence[str] | None = None
        self.places: list[tuple[dict[str, Any], str, Any]] = []

    def bind(self, names: Sequence[str], slots: Iterable[nn.ModuleDict]) -> None:
        """Take ``chain`` for what the adapters of these names have in a layer's slots."""
        if names != self.names:
            held: Any = [slot._modules for slot in slots]
            self.places = [(slot, name, slot.get(name)) for slot in held for name in names]
            self.names = names  # last, as other threads look at it first

    def serves(self, selection: Selection, x: Tensor) -> bool:
        """Whether `apply` does to ``x`` what the selected adapters do around a layer that has none merged."""
        if selection.active != self.names or selection.routes is not None or x.dtype is not self.takes:
            return False
        if self.thin is not None and type_of_products(x) is not self.thin:
            return False
        for slot, name, adapter in self.places:
            if slot.get(name) is not adapter:
                return False
        return self.holds()

    def holds(self) -> bool:
        """Whether the adapters still do what they did."""
        raise NotImplementedError

    def apply(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """The adapted output of a plain layer, for ``x (..., in)``."""
        raise NotImplementedError

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """The same of any other one, from its own output ``y (..., out)``, in a new tensor."""
        raise NotImplementedError


def is_traced() -> bool:
    """Whether operations are recorded or transformed, not just computed."""
    return is_compiling() or _are_transforms_active()


def is_plain_inference() -> bool:
    """`is_plain_call`, without gradients."""
    return not (is_grad_enabled() or _is_any_autocast_enabled() or _are_transforms_active() or is_compiling())


def is_plain_call() -> bool:
    """Whether what is computed is what is written: no autocast, no tracing, no transform."""
    return not (is_compiling() or _is_any_autocast_enabled() or _are_transforms_active())


def can_be_kept(adapters: Iterable[nn.Module], x: Tensor) -> bool:
    """Whether writing to the adapters' tensors is noticed, and a later forward can use what this one makes."""
    if type(x) not in (Tensor, nn.Parameter) or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    for adapter in adapters:
        for module in modules_in(adapter):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and not _is_watchable(tensor):
                    return False
    return True


def _is_watchable(tensor: Tensor) -> bool:
    return not (tensor.requires_grad or tensor.is_inference()) and type(tensor) in (Tensor, nn.Parameter)
