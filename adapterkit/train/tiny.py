"""Tiny base models made from a configuration: ``builtin:bert``, ``gpt2``, ``llama`` and ``t5``.

Their weights depend on nothing but this file, the lexicon and torch's generator. Nothing in them was trained, but they
have what pre-training leaves behind and a small adapter needs: words of one kind lie together in the embedding,
activations keep their size from layer to layer, and the first layer of BERT looks at neighbouring words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapterkit.config.choices import BUILTIN_PREFIX
from adapterkit.errors import ConfigError, of_choices
from adapterkit.train.builtin import words

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
        "tie_word_embeddings": False,
    },
    "t5": {
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": 2 * WIDTH,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "tie_word_embeddings": False,
    },
}
"""Sizes of each family, as its own configuration class spells them."""

GAINS = (
    (r"lm_head", 1.0),
    (r"word_embeddings|wte|embed_tokens|shared", 0.0),
    (r"position_embeddings|wpe", 0.3),
    (r"token_type_embeddings", 0.1),
    (r"relative_attention_bias", 0.3),
    (r"Attention\.[qk]$", 0.4),
    (r"classifier|pooler|score|qa_outputs", 0.2),
    (r"", 1.0),
)
"""Standard deviation of a matrix' rows by its name, first match; for layers in units of ``1 / sqrt(inputs)``."""

OWN, SHARED = 0.5, 1.0
"""How much of a word's embedding is its own, and how much it shares with the words of its kind."""

PLACES = WIDTH // HEADS
"""How many dimensions of BERT's embeddings tell the position."""

OFFSETS = (-1, 1, -2, 2)
"""Where the heads of BERT's first layer look, relative to their own position."""

FOCUS = 1.6
"""Scale of their queries and keys: how much of a head's attention falls on one position."""


def family_of(name: str) -> str | None:
    """``"bert"`` for ``"builtin:bert"``; None for a name that is no built-in model.

    Raises:
        ConfigError: there is no built-in model of that family.
    """
    if not name.startswith(BUILTIN_PREFIX):
        return None
    family = name.removeprefix(BUILTIN_PREFIX)
    if family not in SIZES:
        raise ConfigError(
            f"model.name_or_path={name}: no such model{of_choices(name, map(BUILTIN_PREFIX.__add__, SIZES))}"
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
    if model.config.model_type == "bert":
        _look_around(model.base_model, generator)


def _scale(name: str, module: nn.Module) -> float:
    gain = next(gain for pattern, gain in GAINS if re.search(pattern, name))
    if isinstance(module, nn.Embedding):
        return gain
    linear: Any = module
    inputs = linear.weight.shape[0] if isinstance(module, transformers.pytorch_utils.Conv1D) else linear.in_features
    return float(gain * inputs**-0.5)


def _embedding(tokenizer: PreTrainedTokenizerBase, width: int, generator: torch.Generator) -> Tensor:
    """Of shape (vocabulary, width): a vector for each piece, plus one for each kind of word it belongs to."""
    table = torch.randn((len(tokenizer), width), generator=generator) * OWN
    for kind in words.KINDS:
        rows = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in kind]
        table[rows] += torch.randn(width, generator=generator) * SHARED
    return table


def _look_around(bert: Any, generator: torch.Generator) -> None:
    """Give a BERT model sinusoidal positions, and first-layer heads that each attend to one relative position.

    A head's query turns the sinusoids of its position by its offset, so that they meet those of the key it looks for.
    """
    parts, attention = bert.embeddings, bert.encoder.layer[0].attention.self
    half = PLACES // 2
    frequencies = 0.1 + 3 * torch.rand(half, generator=generator)
    angles = torch.arange(LENGTH)[:, None] * frequencies
    for table in (parts.word_embeddings, parts.token_type_embeddings, parts.position_embeddings):
        table.weight[:, :PLACES] = 0
    parts.position_embeddings.weight.zero_()
    parts.position_embeddings.weight[:, :PLACES] = torch.cat([angles.sin(), angles.cos()], dim=1)
    attention.query.weight.zero_()
    attention.key.weight.zero_()
    for head, offset in enumerate(OFFSETS):
        rows = slice(head * PLACES, (head + 1) * PLACES)
        sine, cosine = (frequencies * offset).sin().diag(), (frequencies * offset).cos().diag()
        turn = torch.cat([torch.cat([cosine, sine], dim=1), torch.cat([-sine, cosine], dim=1)])
        attention.query.weight[rows, :PLACES] = FOCUS * turn
        attention.key.weight[rows, :PLACES] = FOCUS * torch.eye(PLACES)
