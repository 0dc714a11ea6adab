"""The weight and bias that do what a chain of adapters does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import LayerAdapter, wrap
from adapterkit.nn.view import LayerView


def merged_parameters(
    chain: Sequence[LayerAdapter], view: LayerView, *, exact: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The weight and bias that do what ``chain`` does around ``view``.

    Adapters that state their weight are asked for it. Any other affine change is read off by running it on
    the identity: ``b' = f(0)`` and ``W' = f(I) - f(0)``.

    Args:
        chain: the adapters, innermost first.
        view: the layer.
        exact: compute in float32 at least; otherwise in the weight's own type where every adapter states its weight.

    Raises:
        CapabilityError: the change is not affine, or adds a bias to a layer without one.
    """
    for adapter in chain:
        if not adapter.mergeable:
            raise CapabilityError(f"{type(adapter).__name__} cannot be merged: its change is not affine in the input")
    stated = all(adapter.states_weight for adapter in chain)
    weight, bias = view.weight, view.bias
    if exact or not stated:
        weight, bias = _at_least_float(weight), _at_least_float(bias)
    if stated:
        for adapter in chain:
            weight, bias = adapter.adapt_weight(weight), adapter.adapt_bias(bias)
    elif view.kind in ("linear", "embedding"):
        weight, bias = _probed(chain, view, weight, bias)
    else:
        raise CapabilityError(f"merging into a {type(view.layer).__name__} needs adapters that define adapt_weight")
    if bias is not None and view.bias is None:
        raise CapabilityError(f"the adapters add a bias, which this {type(view.layer).__name__} has no place for")
    return weight, bias


def _probed(
    chain: Sequence[LayerAdapter], view: LayerView, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    def affine(x: Tensor) -> Tensor:
        y = view.apply(x, weight)
        return y if bias is None else y + bias

    if view.kind == "embedding":
        return wrap(chain, affine, view.probe()) / view.output_scale, None
    probe = view.probe().to(weight.dtype)
    origin = wrap(chain, affine, torch.zeros_like(probe[:1]))
    adds_bias = bias is not None or bool(origin.any())
    return (wrap(chain, affine, probe) - origin).T, origin[0] if adds_bias else None


def _at_least_float(tensor: Any) -> Any:
    return tensor.float() if isinstance(tensor, Tensor) and tensor.element_size() < 4 else tensor
