r"""(IA)³ (Liu et al., 2022), https://arxiv.org/abs/2205.05638: inhibit and amplify inner activations by learnt vectors.

.. math::

    y = l \odot (W x + b) \text{ on keys and values}, \quad y = W (l \odot x) + b \text{ ending a feed-forward block}

For keys, values and feed-forward blocks of a 768-wide transformer: 4,608 trained numbers a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.errors import CapabilityError
from adapterkit.methods.ia3.config import IA3Config
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.combination import Combination
from adapterkit.nn.forms import RowForm
from adapterkit.nn.view import LayerView


@final
class IA3Adapter(LayerAdapter):
    """``l * y``, or on feed-forward modules ``l * x``."""

    kinds = frozenset({"linear", "conv"})
    sums = True

    def __init__(self, config: IA3Config, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.scales_input = bool(config.feedforward_modules)
        size = layer.in_features if self.scales_input else layer.out_features
        if layer.kind == "conv":
            shape: tuple[int, ...] = (1, size, *[1] * len(layer.layer.kernel_size))
        else:
            shape = (1, size) if self.scales_input else (size, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape) if config.init_ia3_weights else torch.randn(shape))
        # (1, in_features), (out_features, 1), or (1, channels, 1...)

    @override
    def adapt_input(self, x: Tensor) -> Tensor:
        return self._scaled(x) if self.scales_input else x

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y if self.scales_input else self._scaled(y)

    @classmethod
    @override
    def combined_config(cls, configs: Sequence[Any], layers: Mapping[str, Sequence[Any]], how: Combination) -> Any:
        """Feed-forward layers are those of any of the adapters.

        Raises:
            CapabilityError: at some layer one scales the inputs, and another one the outputs.
        """
        config = super().combined_config(configs, layers, how)
        ends = {target: {adapter.scales_input for adapter in adapters} for target, adapters in layers.items()}
        unlike = [target for target, kinds in ends.items() if len(kinds) > 1]
        if unlike:
            raise CapabilityError(
                f"IA3 adapters cannot be combined where feedforward_modules of some name a layer, and of others do "
                f"not: {', '.join(unlike)}"
            )
        return config.model_copy(update={"feedforward_modules": [t for t, kinds in ends.items() if True in kinds]})

    def _scaled(self, x: Tensor) -> Tensor:
        scale = self.ia3_l if self.layer.kind == "conv" else self.ia3_l.flatten()
        return (x * scale).to(x.dtype)

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm:
        scale = (self.ia3_l.flatten().to(dtype),)
        return RowForm(scale, on_input=_rows_scaled) if self.scales_input else RowForm(scale, on_output=_rows_rescaled)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        scale = self.ia3_l.flatten().to(weight.dtype)
        if not self.scales_input:
            return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        groups = len(scale) // weight.shape[1]  # each group of a convolution sees its own inputs
        per_output = scale.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        return weight * per_output.reshape(*per_output.shape, *[1] * (weight.ndim - 2))

    @override
    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        return bias if bias is None or self.scales_input else bias * self.ia3_l.flatten().to(bias.dtype)


def _rows_scaled(x: Tensor, scale: Tensor) -> Tensor:
    """``x (rows, tokens, features)`` and ``scale (rows, features)``."""
    return x * scale[:, None]


def _rows_rescaled(y: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The same of outputs, which are written to."""
    return y.mul_(scale[:, None])
