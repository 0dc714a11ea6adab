"""The contract: what a new adapter method must say about itself.

An adapter wraps one frozen call and may change what goes in and what comes out. A layer method implements
`LayerAdapter.adapt_input` or `LayerAdapter.adapt_output`, or says the same on the weight (`WeightAdapter`); a prompt
method implements the two verbs around the whole model (`PromptAdapter`). Merging, mixing, per-row routing, disabling,
quantised bases and saving follow from these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adapterkit.errors import CheckpointError

if TYPE_CHECKING:
    from adapterkit.nn.view import LayerView


class Adapter(nn.Module):
    """What layer and prompt adapters share: their tensors, as they stand in a file."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save, by the name that follows the layer's in the file."""
        return {name: tensor.detach() for name, tensor in self.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave.

        Raises:
            CheckpointError: names or shapes differ; names both sides.
        """
        own = self.state_dict(keep_vars=True)
        if own.keys() != tensors.keys():
            raise CheckpointError(f"expected tensors {sorted(own)}, found {sorted(tensors)}")
        for name, tensor in tensors.items():
            self._load_one(name, own[name], tensor)

    def _load_one(self, name: str, own: Tensor, tensor: Tensor) -> None:
        if own.shape != tensor.shape:
            raise CheckpointError(f"{name}: expected shape {tuple(own.shape)}, found {tuple(tensor.shape)}")
        if own.is_meta:
            path, _, leaf = name.rpartition(".")
            holder = self.get_submodule(path)
            value = tensor.clone()
            setattr(holder, leaf, nn.Parameter(value, own.requires_grad) if isinstance(own, nn.Parameter) else value)
        else:
            own.copy_(tensor)


class LayerAdapter(Adapter):
    """One adapter's change to one frozen layer ``y = layer(x)``.

    Say what happens to the layer's input, to its output, or to both; what is left out stays as it was.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    """The kinds of layer it adapts: ``linear``, ``embedding``, ``conv``, or ``any`` (see `LayerView.kind`)."""

    mergeable: ClassVar[bool] = True
    """Whether the change is affine in ``x``, so that some weight and bias express it."""

    def __init__(self, config: Any, layer: LayerView) -> None:
        """Read what is needed off ``config``, which is not kept, and create the parameters for ``layer``."""
        super().__init__()
        self.layer = layer

    def adapt_input(self, x: Tensor) -> Tensor:
        """Shape ``(rows, ..., in_features)`` to the same."""
        return x

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        """Shape ``(rows, ..., out_features)`` to the same; ``x`` is the input before `adapt_input`."""
        return y

    def adapt_weight(self, weight: Tensor) -> Tensor:
        """The same change stated on the weight, in the orientation of `LayerView.weight`. Optional: faster merging,
        and needed to merge into convolutions."""
        raise NotImplementedError

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        """The same change stated on the bias, where `adapt_weight` states the weight's."""
        return bias

    def fused(self, layer: nn.Linear, x: Tensor) -> Tensor | None:
        """The whole adapted layer at once, or None where that is not possible. Optional, an accelerator: the same
        numbers as the onion, for this adapter alone on a plain linear layer.

        The weight must be read off ``layer`` in the call, and only tensors made in the call may be changed in place.
        """
        return None

    @property
    def states_weight(self) -> bool:
        """Whether this adapter states its change on the weight."""
        return type(self).adapt_weight is not LayerAdapter.adapt_weight


class WeightAdapter(LayerAdapter, ABC):
    """A method that is easier to say as a change of the weight: ``W' = adapt_weight(W)``."""

    kinds = frozenset({"linear", "embedding", "conv"})

    @abstractmethod
    def adapt_weight(self, weight: Tensor) -> Tensor:
        """Same shape as ``weight``."""

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return y + self.layer.apply(x, self.adapt_weight(weight) - weight)


class PromptAdapter(Adapter, ABC):
    """One adapter's change to a whole model's keyword inputs and outputs."""

    def __init__(self, config: Any, model: nn.Module) -> None:
        """Read what is needed off ``config``, whose sizes are filled in, and create the parameters."""
        super().__init__()

    @abstractmethod
    def adapt_input(self, inputs: dict[str, Any], model: nn.Module, task: Any) -> dict[str, Any]:
        """The keyword inputs of the model's forward to the same, with virtual tokens in place.

        Args:
            inputs: what the model's ``forward`` was called with; ``input_ids`` is ``(rows, columns)``.
            model: the base model.
            task: says in ``fill`` with what value each input grows.
        """

    def adapt_output(self, outputs: Any) -> Any:
        """The model's outputs to the same."""
        return outputs


def wrap(chain: Sequence[LayerAdapter], base: Callable[[Any], Any], x: Any) -> Any:
    """``base`` inside every adapter of ``chain``, the first one innermost."""
    inputs = []
    for adapter in reversed(chain):
        inputs.append(x)
        x = adapter.adapt_input(x)
    y = base(x)
    for adapter in chain:
        y = adapter.adapt_output(y, inputs.pop())
    return y
