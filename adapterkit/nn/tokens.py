r"""Single rows of an embedding, trained in place of the whole table; an output layer tied to it follows.

.. math:: y_i = t_{k(x_i)} \text{ if token } x_i \text{ is trained, else } E_{x_i}

The values replace the rows rather than being added to them, so that an adapter means the same on a base whose new rows
were drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.view import LayerView


class TokenRows(LayerAdapter):
    """Replaces what an embedding looks up, or a linear output layer scores, for some tokens."""

    kinds = frozenset({"embedding", "linear"})
    is_method = False
    prefix = "token_adapter."
    indices: Tensor  # (tokens,)
    place: Tensor  # (vocabulary,): the row of a token's values, or -1

    def __init__(self, layer: LayerView, indices: Tensor) -> None:
        super().__init__(None, layer)
        if layer.kind not in self.kinds:
            raise CapabilityError(f"trainable_token_indices: a {type(layer.layer).__name__} has no rows of tokens")
        place = torch.full((layer.weight_shape[0],), -1, device=indices.device)
        place[indices] = torch.arange(len(indices), device=indices.device)
        self.register_buffer("indices", indices, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def rows(self) -> Tensor:
        """The trained values, ``(tokens, features)``."""
        raise NotImplementedError

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        rows = self.rows()
        if self.layer.kind == "linear":
            bias = self.layer.bias
            scores = F.linear(x, rows.to(x.dtype), None if bias is None else bias[self.indices].to(x.dtype))
            return y.index_copy(-1, self.indices, scores.to(y.dtype))
        place = self.place[x]
        values = self.layer.scaled(F.embedding(place.clamp(min=0), rows)).to(y.dtype)
        return torch.where((place >= 0).unsqueeze(-1), values, y)

    @override
    def adapt_weight(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.indices, self.rows().to(weight.dtype))


@final
class TokenAdapter(TokenRows):
    """Holds the values that are trained, at first the base's own."""

    def __init__(self, layer: LayerView, indices: Sequence[int]) -> None:
        known = "cpu" if layer.device.type == "meta" else layer.device  # indices are not filled in by loading
        super().__init__(layer, torch.tensor(indices, device=known))
        self.trainable_tokens_delta = nn.Parameter(layer.weight[self.indices].clone())  # (tokens, features)

    @override
    def rows(self) -> Tensor:
        return self.trainable_tokens_delta


@final
class TiedTokens(TokenRows):
    """Follows another layer's `TokenRows`, as the layer's own weight does. Has no parameters."""

    def __init__(self, layer: LayerView, leader: TokenRows) -> None:
        super().__init__(layer, leader.indices)
        self._leader = (leader,)  # in a tuple, so that it is not registered, counted and saved twice

    @override
    def rows(self) -> Tensor:
        return self._leader[0].rows()
