r"""QA-LoRA (Xu et al., 2023), https://arxiv.org/abs/2309.14717: the first factor sees the mean of every group of
inputs, as one scale and zero point of the quantised weight serve a group.

.. math:: y = W x + s B A \bar x, \quad \bar x_j = \frac{n}{g^2} \sum_{i = jg}^{(j + 1) g - 1} x_i

with ``n`` inputs in groups of ``g``; the factor ``n / g`` beside the mean is PEFT's. ``A`` is ``(r, n / g)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adapterkit.errors import CapabilityError
from adapterkit.nn import storage
from adapterkit.nn.view import LayerView


def group_of(config: Any, layer: LayerView) -> int:
    """The size of the groups of ``layer``'s inputs; 1 without ``use_qalora``.

    Raises:
        CapabilityError: the layer is not quantised, or its inputs are not so many groups.
    """
    if not config.use_qalora:
        return 1
    if layer.kind != "linear" or not layer.called or not storage.is_quantised(layer.layer):
        what = type(layer.layer).__name__
        raise CapabilityError(f"use_qalora is for quantised linear layers, whose groups it follows, and not a {what}")
    size: int = config.qalora_group_size
    if layer.in_features % size:
        raise CapabilityError(f"qalora_group_size={size} does not divide a layer's {layer.in_features} inputs")
    return size


def pooled(x: Tensor, size: int) -> Tensor:
    """``(..., n)`` to ``(..., n / size)``."""
    if size == 1:
        return x
    groups = x.reshape(*x.shape[:-1], -1, size)
    return groups.mean(-1) * groups.shape[-2]


def spread(a: Tensor, size: int) -> Tensor:
    """The factor ``(r, n)`` that does to the inputs what ``a (r, n / size)`` does to their groups."""
    return a if size == 1 else a.repeat_interleave(size, dim=1) * (a.shape[1] / size)
