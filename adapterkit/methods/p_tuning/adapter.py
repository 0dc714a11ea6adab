"""P-tuning: Liu et al., "GPT Understands, Too", 2021.

https://arxiv.org/abs/2103.10385. The model is given ``[P; embed(x)]`` with ``P = MLP(E)`` or ``P = MLP(LSTM(E))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import Tensor, nn
from typing_extensions import override

from adapterkit.nn.adapter import PromptAdapter

if TYPE_CHECKING:
    from adapterkit.methods.p_tuning.config import PromptEncoderConfig


@final
class PTuningAdapter(PromptAdapter):
    """``[P; embed(x)]`` with ``P = MLP(LSTM(E))``, the LSTM optional; a loaded ``P`` is trained itself."""

    def __init__(self, config: PromptEncoderConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        dim = config.token_dim or 0
        hidden = config.encoder_hidden_size or dim
        tokens = config.num_virtual_tokens * (config.num_transformer_submodules or 1)
        self.embedding = nn.Embedding(tokens, dim)  # (tokens, token_dim)
        self.lstm_head: nn.LSTM | None = None
        self.mlp_head: nn.Sequential | None
        if config.encoder_reparameterization_type == "MLP":
            layers = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)]
            self.mlp_head = nn.Sequential(*layers)
            return
        self.lstm_head = nn.LSTM(
            dim,
            hidden,
            num_layers=config.encoder_num_layers,
            dropout=config.encoder_dropout,
            bidirectional=True,
            batch_first=True,
        )
        self.mlp_head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, dim))

    @override
    def table(self) -> Tensor:
        table: Tensor = self.embedding.weight
        if self.lstm_head is not None:
            table = self.lstm_head(table[None])[0][0]
        return table if self.mlp_head is None else self.mlp_head(table)
