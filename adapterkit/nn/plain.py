"""Where a short cut past a layer's own call is safe."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as of_all


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether calling the layer is nothing but ``F.linear``: nobody listens to it, replaced its forward, or stores its
    weight in a way of their own. To be asked in every call: hooks come and go."""
    if type(layer) is not nn.Linear:
        return False
    own = layer.__dict__
    return (
        type(own["_parameters"].get("weight")) is nn.Parameter  # pruning and the like compute it in a hook
        and not own["_forward_hooks"]
        and not own["_forward_pre_hooks"]
        and not own["_backward_hooks"]
        and not own["_backward_pre_hooks"]
        and "forward" not in own
        and not of_all._global_forward_hooks
        and not of_all._global_forward_pre_hooks
        and not of_all._global_backward_hooks
        and not of_all._global_backward_pre_hooks
    )


def is_frozen(layer: nn.Linear) -> bool:
    """Whether neither the weight nor the bias is trained."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    return not (weight.requires_grad or (bias is not None and bias.requires_grad))  # type: ignore[union-attr]
