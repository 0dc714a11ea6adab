"""Where a short cut past a layer's own call is safe."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether calling the layer is nothing but ``F.linear``: nobody listens to it, replaced its forward, or stores its
    weight in a way of their own. To be asked in every call: hooks come and go."""
    return (
        type(layer) is nn.Linear
        and type(layer._parameters["weight"]) is nn.Parameter
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
        and "forward" not in layer.__dict__
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def is_frozen(layer: nn.Linear) -> bool:
    """Whether neither the weight nor the bias is trained."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    return not (weight.requires_grad or (bias is not None and bias.requires_grad))  # type: ignore[union-attr]
