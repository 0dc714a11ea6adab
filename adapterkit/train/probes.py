"""Inputs made of nothing but a model's configuration, and how far two models' outputs for them are apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapterkit.errors import CapabilityError, CheckFailedError

ROWS, LENGTH = 4, 32
SAMPLES = 16000
"""Of a sound: a second."""


def probe(model: PreTrainedModel) -> dict[str, Tensor]:
    """A batch of random tokens, pixels or sounds, the same on every call.

    Raises:
        CapabilityError: the model takes something else.
    """
    draw = torch.Generator().manual_seed(0)
    kind, config, accepted = model.main_input_name, model.config, inspect.signature(model.forward).parameters
    if kind == "input_ids":
        ids = _tokens(model, draw)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            batch["decoder_input_ids"] = ids.clone()
    elif kind == "pixel_values":
        size = config.image_size
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        batch = {kind: torch.randn(ROWS, getattr(config, "num_channels", 3), *sides, generator=draw)}
    elif kind == "input_values":
        batch = {kind: torch.randn(ROWS, SAMPLES, generator=draw)}
    else:
        raise CapabilityError(f"a {type(model).__name__} takes {kind}, of which no probe can be made")
    taken = {name: tensor for name, tensor in batch.items() if name in accepted or name == kind}
    return {name: tensor.to(model.device) for name, tensor in taken.items()}


def _tokens(model: PreTrainedModel, draw: torch.Generator) -> Tensor:
    """Of shape (rows, length): no special tokens, but one that ends every row, which some models look for."""
    config: Any = model.config.get_text_config()
    embedding: Any = model.get_input_embeddings()
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "decoder_start")}
    known = len(embedding.weight)
    plain = torch.tensor([index for index in range(known) if index not in special] or [0])
    ids = plain[torch.randint(len(plain), (ROWS, length), generator=draw)]
    end = config.eos_token_id if isinstance(config.eos_token_id, int) else None
    if end is not None and end < known:
        ids[:, -1] = end
    return ids


@torch.no_grad()
def outputs_of(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers that a model returns, in float64 on the CPU."""
    found = model(**batch)
    named = found.items() if isinstance(found, Mapping) else enumerate(found)
    return {
        str(name): value.detach().double().cpu()
        for name, value in named
        if isinstance(value, Tensor) and value.is_floating_point()
    }


class Distance(NamedTuple):
    """How far outputs are apart."""

    largest: float
    """The largest absolute difference."""
    size: float
    """The largest absolute output, and 1 at least."""

    @property
    def relative(self) -> float:
        """The one divided by the other."""
        return self.largest / self.size


def distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Distance:
    """The distance between two models' outputs; infinite where one has a number and the other none.

    Raises:
        CheckFailedError: they have other outputs, or none.
    """
    shapes = [{name: tuple(value.shape) for name, value in found.items()} for found in (before, after)]
    if shapes[0] != shapes[1] or not before:
        raise CheckFailedError(f"the outputs are {shapes[0]} before and {shapes[1]} after")
    largest, size = 0.0, 1.0
    for name, value in before.items():
        apart = (value - after[name]).abs().masked_fill(value == after[name], 0.0).nan_to_num(nan=torch.inf)
        usual = value.abs()[value.abs() < 1e30]  # masked positions have the lowest number there is
        largest = max(largest, float(apart.max()) if apart.numel() else 0.0)
        size = max(size, float(usual.max()) if usual.numel() else 0.0)
    return Distance(largest, size)
