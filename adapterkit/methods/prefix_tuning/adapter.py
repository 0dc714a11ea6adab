"""Prefix tuning: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021.

https://arxiv.org/abs/2101.00190. In every layer ``attend(Q, [P_K; K], [P_V; V])``: learnt keys and values stand before
those of the input. With a projection they are made by a network, ``[P_K; P_V] = MLP(E)`` (section 4.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import Tensor, nn
from typing_extensions import override

from adapterkit.nn.adapter import PromptAdapter

if TYPE_CHECKING:
    from adapterkit.methods.prefix_tuning.config import PrefixTuningConfig


@final
class PrefixTuningAdapter(PromptAdapter):
    """``attend(Q, [P_K; K], [P_V; V])`` with ``P`` the table, or ``P = W_2 tanh(W_1 E)``."""

    place: ClassVar[Any] = "cache"

    def __init__(self, config: PrefixTuningConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        tokens, dim = config.num_virtual_tokens, config.token_dim
        assert dim is not None
        assert config.num_layers is not None
        width = config.num_layers * 2 * dim
        self.transform: nn.Sequential | None = None
        if config.prefix_projection:
            hidden = config.encoder_hidden_size or dim
            self.embedding = nn.Embedding(tokens, dim)  # (tokens, token_dim)
            self.transform = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, width))
        else:
            self.embedding = nn.Embedding(tokens, width)  # (tokens, layers * 2 * token_dim)
        if config.init_weights == "zero":
            last = self.embedding if self.transform is None else self.transform[-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    @override
    def table(self) -> Tensor:
        start = self.embedding.weight
        return start if self.transform is None else self.transform(start)
