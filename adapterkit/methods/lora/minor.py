r"""MiCA (Rüdiger and Raschka, 2026), https://arxiv.org/abs/2604.01694: only the directions are changed that the weight
uses least.

.. math:: y = W x + s B A x, \quad W = U \Sigma V^\top, \quad B = (u_{k - r + 1}, ..., u_k), \quad A_0 = 0

``B (out, r)`` has the left singular vectors of the ``r`` smallest of ``k = min(out, in)`` singular values and is not
trained; ``A (r, in)`` starts at zero. An embedding's rows are looked up, so its ``W`` is the table transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adapterkit.errors import CapabilityError, ConfigError

SCHEME = "mica"


@torch.no_grad()
def fill(adapter: Any) -> None:
    """Fill the factors of a new adapter; one on the meta device takes both from its file.

    Raises:
        CapabilityError: the layer is neither linear nor an embedding.
        ConfigError: its weight has fewer than ``r`` singular vectors.
    """
    kind, (a, b) = adapter.layer.kind, adapter.factors()
    if kind not in ("linear", "embedding"):
        raise CapabilityError(f"init_lora_weights={SCHEME!r} is for linear layers and embeddings only")
    b.requires_grad_(False)
    shape = adapter.layer.weight_shape
    if adapter.r > min(shape):
        raise ConfigError(f"init_lora_weights={SCHEME!r} takes r={adapter.r} directions; a weight {shape} has fewer")
    weight = adapter.layer.weight
    if a.is_meta or weight.is_meta:
        return
    matrix = weight.T if kind == "embedding" else weight
    nn.init.zeros_(a)
    b.copy_(torch.linalg.svd(matrix.float(), full_matrices=False).U[:, -adapter.r :])
