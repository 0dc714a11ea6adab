"""`torch.nn.Module` where hundreds of small ones are made: one for every adapted layer, and some for every adapter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError
from adapterkit.given import misfit

_NEW = vars(nn.Module())
"""What every module is made with."""

_HOOKS = [name for name, value in _NEW.items() if isinstance(value, OrderedDict)]
_CONTAINERS = [(name, type(value)) for name, value in _NEW.items() if type(value) in (dict, set)]
_FLAGS = [(name, value) for name, value in _NEW.items() if not isinstance(value, dict | set)]

_put = object.__setattr__
_REGISTERED = (nn.Module, Tensor)
_PLAIN = frozenset({bool, int, float, str, tuple})


class _Hooks:
    """One of a module's ten dicts of hooks, made when somebody asks for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, kind: type[Any] | None = None) -> Any:
        if module is None:
            return self
        made = module.__dict__[self.name] = OrderedDict[Any, Any]()
        return made


class _AccelerateHook:
    """Where accelerate puts a module's hook. One that offloads an adapter's tensors is refused: where they are read
    without calling the module, they would not be fetched."""

    name = "_hf_hook"

    def __get__(self, module: Any, kind: type[Any] | None = None) -> Any:
        if module is None:
            return self
        try:
            return module.__dict__[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, module: Any, hook: Any) -> None:
        if any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,))):
            raise CapabilityError(
                f"accelerate is to offload the tensors of an adapter, a {type(module).__name__}: offload the base "
                "model first, and make or load its adapters then"
            )
        module.__dict__[self.name] = hook

    def __delete__(self, module: Any) -> None:
        del module.__dict__[self.name]


class Module(nn.Module):
    """A module that is made in a sixth of the time, and whose plain attributes are set in a quarter.

    PyTorch makes ten dicts of hooks for every module and searches for parameters whenever an attribute is set. Here the
    dicts are made when they are asked for: they are more than half of what a module weighs, and a loaded adapter's
    modules together are a tenth of the size of its file.
    """

    _hf_hook = _AccelerateHook()

    def __init__(self) -> None:
        for name, value in _FLAGS:
            _put(self, name, value)
        for name, make in _CONTAINERS:
            _put(self, name, make())

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if "_modules" not in own or (type(value) not in _PLAIN and isinstance(value, _REGISTERED)):
            super().__setattr__(name, value)
        elif name in own["_parameters"] or name in own["_buffers"] or name in own["_modules"]:
            super().__setattr__(name, value)  # what may take its place is PyTorch's to say
        else:
            _put(self, name, value)


for _name in _HOOKS:
    setattr(Module, _name, _Hooks(_name))


class ModuleDict(Module, nn.ModuleDict):
    """PyTorch's, made as `Module` is: empty."""


META = torch.device("meta")
_on_meta: ContextVar[bool] = ContextVar("_on_meta", default=False)


@contextmanager
def on_meta() -> Iterator[None]:
    """In the block, new tensors have a shape and no values."""
    before = _on_meta.set(True)
    try:
        with nullcontext() if torch.get_default_device() == META else META:  # a second one costs as the first
            yield
    finally:
        _on_meta.reset(before)


def empty(*shape: int) -> Tensor:
    """`torch.empty`; inside `on_meta` one that was made before, as there is nothing in it: a tenth of the time."""
    return _shaped(shape, torch.get_default_dtype()) if _on_meta.get() else torch.empty(shape)


@lru_cache(maxsize=1000)
def _shaped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def check_is_module(given: object, argument: str = "model") -> None:
    """
    Raises:
        ArgumentError: this is no module: a config, a class, a path.
    """
    if not isinstance(given, nn.Module):
        raise misfit(argument, given, "a torch.nn.Module")


def modules_in(root: nn.Module) -> list[nn.Module]:
    """``root`` and every module inside it: `torch.nn.Module.modules` without its layers of generators."""
    found: list[Any] = [root]
    for module in found:
        inside = module._modules
        if inside:
            found.extend(child for child in inside.values() if child is not None)
    return found


def set_training(root: nn.Module, mode: bool) -> None:
    """`torch.nn.Module.train` in one loop: a call is made only where a class has its own, and something changes."""
    waiting: list[Any] = [root]
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        if type(module).train is not nn.Module.train or "train" in own or "training" not in own:
            if any(inside.training is not mode for inside in modules_in(module)):
                module.train(mode)
        else:
            own["training"] = mode
            waiting.extend(child for child in module._modules.values() if child is not None)


def holders_in(root: nn.Module, path: str = "") -> dict[str, dict[str, Any]]:
    """The dict that holds each parameter and persistent buffer, by its dotted name: the names are those of
    `torch.nn.Module.state_dict`, and the last part of a name is its key."""
    passing = root._non_persistent_buffers_set
    found: dict[str, dict[str, Any]] = {}
    for held in (root._parameters, root._buffers):
        for name, tensor in held.items():
            if tensor is not None and name not in passing:
                found[path + name] = held
    for name, child in root._modules.items():
        if child is not None:
            found.update(holders_in(child, f"{path}{name}."))
    return found
