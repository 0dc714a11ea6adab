"""How a layer stores its weight. The one place that knows quantisers.

A weight that is stored as numbers of its own shape is read as it is; bitsandbytes and torchao give it back
dequantised; any other linear layer is read off by running it on the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer of unknown class is a quantised linear layer: it has the sizes of one, and no dense weight."""
    return isinstance(getattr(layer, "in_features", None), int) and isinstance(getattr(layer, "out_features", None), int)


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight is stored otherwise than as floating-point numbers of its own shape."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return is_linear(layer)
    return type(weight.data) is not Tensor or not weight.dtype.is_floating_point or hasattr(weight, "quant_state")


def read(layer: Any) -> Tensor:
    """The weight as floating-point numbers, in the orientation the layer's class uses."""
    weight = getattr(layer, "weight", None)
    if not is_quantised(layer):
        return weight.detach()  # type: ignore[union-attr]
    if hasattr(weight, "quant_state") or hasattr(weight, "CB"):
        return _bitsandbytes(weight)
    if isinstance(weight, Tensor) and hasattr(weight, "dequantize"):
        return weight.detach().dequantize()
    return _by_identity(layer)


def _bitsandbytes(weight: Any) -> Tensor:
    from bitsandbytes import functional

    if getattr(weight, "quant_state", None) is not None:
        return functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[no-any-return]
    if getattr(weight, "SCB", None) is not None:
        return functional.int8_vectorwise_dequant(weight.CB, weight.SCB)  # type: ignore[no-any-return]
    return weight.detach()  # type: ignore[no-any-return]


@torch.no_grad()
def _by_identity(layer: Any) -> Tensor:
    """``W = (f(I) - f(0))^T`` in float32."""
    tensors = [*layer.parameters(), *layer.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    probe = torch.eye(layer.in_features, device=device)
    return (layer(probe) - layer(torch.zeros_like(probe[:1]))).T.float()
