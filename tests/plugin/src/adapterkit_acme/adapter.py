"""Scale and shift of features.

SSF (Lian et al., 2022), https://arxiv.org/abs/2210.08823: ``y = g (W x + b) + h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from adapterkit.nn.adapter import LayerAdapter

if TYPE_CHECKING:
    from adapterkit.nn.view import LayerView
    from adapterkit_acme.config import ScaleShiftConfig


@final
class ScaleShiftAdapter(LayerAdapter):
    """``y = g (W x + b) + h``, with one ``g`` and one ``h`` for each output."""

    def __init__(self, config: ScaleShiftConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.ssf_scale = nn.Parameter(torch.full((layer.out_features,), config.init_scale))  # (out_features,)
        self.ssf_shift = nn.Parameter(torch.zeros(layer.out_features), config.train_shift)  # (out_features,)

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        """Shape ``(rows, ..., out_features)`` to the same."""
        return y * self.ssf_scale.to(y.dtype) + self.ssf_shift.to(y.dtype)
