"""A GPU that is not there: tensors which say that they are on one, and refuse to be computed with those of the CPU.

With `Elsewhere` on, ``.to("cuda")`` and ``device="cuda"`` give tensors whose numbers are on the CPU in truth, so that
what forgets to move a tensor, or makes one in the wrong place, is found on a machine without a GPU. Such tensors are of
a class of their own: short cuts for plain ones are not taken, and weights count as quantised, so that none are merged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")

_SAID: dict[Any, Any] = {
    Tensor.device.__get__: GPU,
    Tensor.is_cuda.__get__: True,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
    Tensor.get_device: 0,
    torch._has_compatible_shallow_copy_type: False,
}
_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.copy_, Tensor.type_as}
_PARSERS = {torch.device, torch._C._nn._parse_to}
_INDEX = {Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put_}
"""Their indices, and a single number to set, may be on the CPU."""


class FarTensor(Tensor):
    """A tensor that says it is on a GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SAID:
            return _SAID[func]
        given = tree_leaves((args, kwargs or {}))
        if func not in _MOVES | _INDEX:
            _check(func, given)
        args, kwargs = tree_map(_on_cpu, (args, kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **kwargs)
        return tree_map(_near if _place(func, given) == CPU else _far, made)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = self.detach().clone()
        memo[id(self)] = made = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return made


def _check(func: Any, given: list[Any]) -> None:
    near = [value for value in given if isinstance(value, Tensor) and not isinstance(value, FarTensor) and value.ndim]
    if near:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu")


def _place(func: Any, given: list[Any]) -> torch.device:
    """Where the result of an operation is."""
    if func is Tensor.cpu:
        return CPU
    places = [value for value in given if isinstance(value, torch.device | str)]
    if places and (isinstance(places[0], torch.device) or places[0].partition(":")[0] in ("cpu", "cuda", "meta")):
        return GPU if _is_gpu(places[0]) else CPU
    if func in {Tensor.to, Tensor.copy_}:
        first, *others = [value for value in given if isinstance(value, Tensor)]
        return GPU if isinstance(others[0] if others and func is Tensor.to else first, FarTensor) else CPU
    return GPU


def _is_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


def _on_cpu(value: Any) -> Any:
    return CPU if _is_gpu(value) else value


def _far(value: Any) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, FarTensor):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(FarTensor)


def _near(value: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor) if isinstance(value, FarTensor) else value


class Elsewhere(TorchFunctionMode):
    """Inside, there is a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        is_far = any(isinstance(value, FarTensor) for value in given)
        if is_far or func in _PARSERS or not any(map(_is_gpu, given)):
            return func(*args, **kwargs)
        args, kwargs = tree_map(_on_cpu, (args, kwargs))
        return tree_map(_far, func(*args, **kwargs))
