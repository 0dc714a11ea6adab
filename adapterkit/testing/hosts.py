"""Small models of three kinds, each for a task: what a prompt method is tried on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

from adapterkit.testing.toys import seeded

ROWS, COLUMNS, WORDS = 5, 6, 30
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
_COMMON = {"vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": 0}


@dataclass(frozen=True)
class Host:
    """A task and a small model for it."""

    task_type: str
    architecture: str
    settings: dict[str, Any]
    column_outputs: bool
    """Whether the output has one vector for every column."""

    def make(self) -> nn.Module:
        with seeded(1):
            config_class, _, model_class = self.architecture.partition(" ")
            model: Any = getattr(transformers, model_class)(getattr(transformers, config_class)(**self.settings))
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.3)
        return model.eval()  # type: ignore[no-any-return]


HOSTS: dict[str, Host] = {
    "causal": Host(
        "CAUSAL_LM",
        "LlamaConfig LlamaForCausalLM",
        {**_COMMON, **_SIZES, "num_key_value_heads": 2},
        column_outputs=True,
    ),
    "encoder": Host(
        "SEQ_CLS",
        "BertConfig BertForSequenceClassification",
        {**_COMMON, **_SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        column_outputs=False,
    ),
    "encoder_decoder": Host(
        "SEQ_2_SEQ_LM",
        "T5Config T5ForConditionalGeneration",
        {"vocab_size": WORDS, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4}
        | {"pad_token_id": 0, "decoder_start_token_id": 0, "dropout_rate": 0.0},
        column_outputs=True,
    ),
}


def recompute(base: Any, *, use_reentrant: bool) -> None:
    """Let a model recompute its layers in backward; transformers calls it gradient or activation checkpointing."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(base, name) for name in names if hasattr(base, name))
    enable({"use_reentrant": use_reentrant})
