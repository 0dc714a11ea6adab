"""Tiny base models made from a configuration: ``builtin:bert``, ``gpt2``, ``llama`` and ``t5``.

Their weights depend on nothing but this file, the lexicon and torch's generator. Nothing in them was trained, but they
have what pre-training leaves behind and a small adapter needs: words of one kind lie together in the embedding, and
activations keep their size from layer to layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapterkit.errors import ConfigError, did_you_mean
from adapterkit.train.builtin import words

PREFIX = "builtin:"
SEED = 20260801
"""Seed of the weights; independent of the seed of a run."""

WIDTH, LAYERS, HEADS, LENGTH = 128, 2, 4, 512

SIZES: Mapping[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": LENGTH,
    },
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LENGTH},
    "llama": {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
    },
    "t5": {
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": 2 * WIDTH,
        "num_layers": LAYERS,
        "num_heads": HEADS,
    },
}
"""Sizes of each family, as its own configuration class spells them."""

GAINS = (
    (r"word_embeddings|wte|embed_tokens|shared|lm_head", 0.0),
    (r"position_embeddings|wpe", 0.3),
    (r"token_type_embeddings", 0.1),
    (r"relative_attention_bias", 0.3),
    (r"query|key|q_proj|k_proj|\.[qk]$", 0.3),
    (r"classifier|pooler|score|qa_outputs", 0.2),
    (r"", 2.0),
)
"""Standard deviation of a matrix' rows by its name, first match; for layers in units of ``1 / sqrt(inputs)``."""

OWN, SHARED = 0.3, 1.0
"""How much of a word's embedding is its own, and how much it shares with the words of its kind."""


def family_of(name: str) -> str | None:
    """``"bert"`` for ``"builtin:bert"``; None for a name that is no built-in model.

    Raises:
        ConfigError: there is no built-in model of that family.
    """
    if not name.startswith(PREFIX):
        return None
    family = name.removeprefix(PREFIX)
    if family not in SIZES:
        near = did_you_mean(family, SIZES)
        raise ConfigError(
            f"model.name_or_path={name}: no such model{near} Choices: {', '.join(PREFIX + f for f in SIZES)}"
        )
    return family


def tiny_config(family: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PretrainedConfig:
    """The configuration of the built-in model ``family`` for the vocabulary of ``tokenizer``."""
    special = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if family == "t5":
        special["decoder_start_token_id"] = special["pad_token_id"]
    config = transformers.AutoConfig.for_model(family, vocab_size=len(tokenizer), **SIZES[family], **special, **options)
    assert isinstance(config, PretrainedConfig)
    return config


@torch.no_grad()
def fill(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every matrix of a built-in model its weights; vectors (norms, biases) stay as they were made."""
    generator = torch.Generator().manual_seed(SEED)
    embedding = model.get_input_embeddings().weight
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2:
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * _scale(name, module))
    embedding.copy_(_embedding(tokenizer, embedding.shape[1], generator))


def _scale(name: str, module: nn.Module) -> float:
    gain = next(gain for pattern, gain in GAINS if re.search(pattern, name))
    if isinstance(module, nn.Embedding):
        return gain
    inputs: int = (
        module.weight.shape[0] if isinstance(module, transformers.pytorch_utils.Conv1D) else module.in_features
    )
    return float(gain * inputs**-0.5)


def _embedding(tokenizer: PreTrainedTokenizerBase, width: int, generator: torch.Generator) -> Tensor:
    """Of shape (vocabulary, width): a vector for each piece, plus one for each kind of word it belongs to."""
    table = torch.randn((len(tokenizer), width), generator=generator) * OWN
    for kind in words.kinds():
        rows = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in kind]
        table[rows] += torch.randn(width, generator=generator) * SHARED
    return table
