"""`torch.nn.Module` where hundreds of small ones are made: one for every adapted layer, and some for every adapter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Module(nn.Module):
    """A module whose plain attributes are set without PyTorch's search for parameters, which costs ten times as much.

    Injecting LoRA into a model takes a tenth less time by it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None or isinstance(value, nn.Module | Tensor) or self._registers(name):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def _registers(self, name: str) -> bool:
        """Whether the name is that of a parameter, buffer or module: what may take its place is PyTorch's to say."""
        own = self.__dict__
        return "_modules" not in own or name in own["_parameters"] or name in own["_buffers"] or name in own["_modules"]


def modules_in(root: nn.Module) -> list[nn.Module]:
    """``root`` and every module inside it: `torch.nn.Module.modules` without its layers of generators."""
    found: list[Any] = [root]
    for module in found:
        inside = module._modules
        if inside:
            found.extend(child for child in inside.values() if child is not None)
    return found


def set_training(root: nn.Module, mode: bool) -> None:
    """`torch.nn.Module.train` in one loop: a call is made only where a class has its own."""
    waiting: list[Any] = [root]
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        if type(module).train is not nn.Module.train or "train" in own or "training" not in own:
            module.train(mode)
        else:
            own["training"] = mode
            waiting.extend(child for child in module._modules.values() if child is not None)


def tensors_in(root: nn.Module, path: str = "") -> dict[str, Tensor]:
    """Parameters and persistent buffers by dotted name: what `torch.nn.Module.state_dict` has, without its hooks."""
    own, passing = {**root._parameters, **root._buffers}, root._non_persistent_buffers_set
    found = {path + name: tensor for name, tensor in own.items() if tensor is not None and name not in passing}
    for name, child in root._modules.items():
        if child is not None:
            found.update(tensors_in(child, f"{path}{name}."))
    return found
