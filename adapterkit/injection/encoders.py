"""`torch.nn.TransformerEncoder` in inference, where PyTorch goes past the modules that a layer holds.

In evaluation an encoder layer reads the weights of its modules and calls none of them, and an encoder hands its layers
the batch without its padding, as a nested tensor that only this path takes. Around an adapted module the layers of the
encoder are called with the padding, and a mask in its place; what they give has none again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer

_ADAPTED = (AdaptedLayer, CopiedLayer)
_KINDS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def are_in(modules: Iterable[nn.Module]) -> bool:
    """Whether any of a model's modules is one of PyTorch's encoders, or a layer of one."""
    return any(isinstance(module, _KINDS) for module in modules)


def settle(model: nn.Module, names: Mapping[str, nn.Module], target: str) -> None:
    """Have the layers around module ``target`` call what they hold, if any of it is adapted, or be as PyTorch has them.

    Args:
        model: the base model.
        names: its modules by name.
        target: name of a module that was just put in place.
    """
    layers = _layers_around(model, names, target)
    adapted = any(isinstance(module, _ADAPTED) for layer in layers for module in layer.modules())
    for layer in layers:
        held = Calling.at(layer)
        if adapted and held is None:
            Calling(layer)
        elif held is not None and not adapted:
            held.remove()


def _layers_around(model: nn.Module, names: Mapping[str, nn.Module], target: str) -> list[nn.Module]:
    """The layers of the encoder that a module is in; the encoder layer alone where it is in no encoder."""
    found: list[nn.Module] = []
    for module in _owners(model, names, target):
        if isinstance(module, nn.TransformerEncoder):
            return list(module.layers)
        if isinstance(module, nn.TransformerEncoderLayer):
            found = [module]
    return found


def _owners(model: nn.Module, names: Mapping[str, nn.Module], target: str) -> Iterator[nn.Module]:
    """The modules that a module is in, the innermost first."""
    while target:
        target = target.rpartition(".")[0]
        yield names[target] if target else model


class Calling:
    """The hooks that have one layer of an encoder call its modules: with any hook, it does not go past them."""

    def __init__(self, layer: nn.Module) -> None:
        self.handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self.pad, with_kwargs=True),
            layer.register_forward_hook(self.nest, with_kwargs=True),
        ]

    @classmethod
    def at(cls, layer: nn.Module) -> Calling | None:
        """The one that a layer has; None where it has none."""
        owners = (getattr(hook, "__self__", None) for hook in layer._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, cls)), None)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def pad(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """A nested input with zeros for the padding that it lacks, and the mask of them."""
        if not args or not getattr(args[0], "is_nested", False):
            return None
        nested: Tensor = args[0]
        lengths = [len(row) for row in nested.unbind()]
        padded = torch.nested.to_padded_tensor(nested, 0.0)
        ends = torch.tensor(lengths).clamp(min=1).to(padded.device)  # attention to nothing is no number
        mask: Any = torch.arange(padded.shape[1], device=padded.device) >= ends[:, None]
        mask.lengths = lengths  # by which `nest` knows it
        return (padded, *args[1:]), {**kwargs, "src_key_padding_mask": mask}

    def nest(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The output without the padding that `pad` put into the input."""
        lengths = getattr(kwargs.get("src_key_padding_mask"), "lengths", None)
        if lengths is None:
            return output
        return torch.nested.as_nested_tensor([row[:length] for row, length in zip(output, lengths, strict=True)])
