"""Tokenizers: one built in code for the built-in models, others from a directory or the Hub."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from adapterkit.train.builtin import vocabulary

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
TEMPLATES = {
    "bert": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
    "gpt2": ("$A", "$A $B"),
    "llama": ("<s> $A", "<s> $A $B"),
    "t5": ("$A </s>", "$A $B </s>"),
}
_WORD, _CHARACTER, _BYTE = -1.0, -10.0, -20.0
"""Log-probabilities that make a known word win over its letters, and letters over bytes."""


def pieces() -> list[tuple[str, float]]:
    """The vocabulary with scores: special tokens, words of the built-in data, ASCII characters, all 256 bytes."""
    words = [(f"▁{word}", _WORD) for word in vocabulary() if len(word) > 1]
    characters = ["▁", "\n", "\t", *map(chr, range(33, 127))]
    single = [f"▁{letter}" for letter in characters[3:]]
    return [
        *((token, 0.0) for token in SPECIAL.values()),
        *words,
        *((letter, _CHARACTER) for letter in characters + single),
        *((f"<0x{byte:02X}>", _BYTE) for byte in range(256)),
    ]


def builtin_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of the built-in model ``family``: words of the built-in data whole, any other text losslessly.

    Args:
        family: ``bert``, ``gpt2``, ``llama`` or ``t5``; decides which special tokens are put around a text.
    """
    vocabulary = pieces()
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    single, pair = TEMPLATES[family]
    ids = {token: index for index, token in enumerate(SPECIAL.values())}
    tokenizer.post_processor = processors.TemplateProcessing(single, pair, [("<s>", ids["<s>"]), ("</s>", ids["</s>"])])
    options: dict[str, Any] = dict(SPECIAL)
    if family == "bert":
        options |= {"cls_token": SPECIAL["bos_token"], "sep_token": SPECIAL["eos_token"]}
    side = {"padding_side": "left"} if family in ("gpt2", "llama") else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **options, **side)
