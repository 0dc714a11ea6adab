"""Virtual tokens in a model's keyword inputs: gathered for the rows of a batch, and put where a method wants them.

Only what transformers documents is used: ``inputs_embeds``, ``past_key_values`` (any `transformers.Cache`), masks and
``position_ids``. Rows of a batch may have different numbers of tokens: shorter prompts are padded on the left, masked,
and their rows' positions count real tokens only, so that every row is computed as if it were alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache

from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.nn.selection import Routes

Inputs = dict[str, Any]


@dataclass(frozen=True)
class VirtualTokens:
    """The virtual tokens of every row of a batch."""

    values: Tensor  # (rows, halves, tokens, width); two halves if a decoder has tokens of its own
    mask: Tensor | None  # (rows, tokens): 0 where a row has fewer tokens than the longest; None if all have as many

    @property
    def columns(self) -> int:
        return self.values.shape[2]

    @property
    def counts(self) -> Tensor | int:
        """How many tokens each row has, ``(rows, 1)``, or all rows."""
        return self.columns if self.mask is None else self.mask.sum(1, keepdim=True)

    def ones(self, like: Tensor) -> Tensor:
        """The columns that a mask ``(rows, columns)`` grows by."""
        mask = torch.ones(self.values.shape[0], self.columns) if self.mask is None else self.mask
        return mask.to(like)

    def before(self, positions: Tensor) -> Tensor:
        """Positions ``(..., 1 or rows, columns)`` with those of the virtual tokens before them, counted from 0."""
        columns = torch.arange(self.columns, device=positions.device)[None]
        virtual = (columns - (self.columns - self.counts)).clamp(min=0)
        rows = max(virtual.shape[0], positions.shape[-2])
        shape = (*positions.shape[:-2], rows, -1)
        return torch.cat([virtual.expand(shape), positions.expand(shape)], dim=-1)


def gather(
    prompts: Any, active: Sequence[str], routes: Routes | None, rows: int, task_ids: Tensor | None
) -> VirtualTokens:
    """The virtual tokens of a batch.

    Args:
        prompts: the `PromptAdapter` of every name.
        active: names of the active adapters.
        routes: which rows have which adapter, instead of the active one; rows in no route have no tokens.
        rows: number of rows.
        task_ids: ``(rows,)``, for adapters that are `PromptAdapter.conditional`.

    Raises:
        StateError: several adapters are active at once, or adapters of one batch are not alike.
    """
    if routes is None:
        names = [name for name in active if name in prompts]
        if len(names) != 1:
            raise StateError(f"a model has one prompt at a time, and {len(names)} are active: {names}")
        return VirtualTokens(_values(prompts[names[0]], rows, task_ids), None)
    parts = []
    for name, index in routes.fit(rows).rows.items():
        index = index.to(prompts[name].embedding.weight.device)
        parts.append((index, _values(prompts[name], len(index), None if task_ids is None else task_ids[index])))
    shapes = {(part.shape[1], part.shape[3]) for _, part in parts}
    if len(shapes) != 1:
        raise StateError(f"the prompts of one batch must have tokens of one size; found {sorted(shapes)}")
    return _joined(parts, rows)


def _values(prompt: PromptAdapter, rows: int, task_ids: Tensor | None) -> Tensor:
    tokens = prompt.tokens(rows, task_ids)
    return tokens.reshape(rows, -1, prompt.num_virtual_tokens, tokens.shape[-1])


def _joined(parts: Sequence[tuple[Tensor, Tensor]], rows: int) -> VirtualTokens:
    """Tokens by rows in one tensor, shorter prompts padded on the left."""
    first = parts[0][1]
    columns = max(part.shape[2] for _, part in parts)
    values = first.new_zeros(rows, first.shape[1], columns, first.shape[3])
    mask = torch.zeros(rows, columns, dtype=torch.long, device=first.device)
    for index, part in parts:
        padding = columns - part.shape[2]
        values = values.index_copy(0, index, F.pad(part, (0, 0, padding, 0)))
        mask[index, padding:] = 1
    alike = sum(len(index) for index, _ in parts) == rows and all(part.shape[2] == columns for _, part in parts)
    return VirtualTokens(values, None if alike else mask)


@dataclass(frozen=True)
class Sizes:
    """How a table is cut into keys and values."""

    layers: int
    heads: int
    stride: int
    """Layer ``i`` reads block ``stride * i`` (modulo `layers`). In PEFT's files of encoder-decoder models it is 2."""


def into_cache(inputs: Inputs, tokens: VirtualTokens, model: nn.Module, sizes: Sizes) -> Inputs:
    """The inputs with the tokens in the first columns of the key-value cache.

    A cache that already holds columns is taken to begin with the tokens, so that generation can go on from it.
    """
    inputs = dict(inputs)
    cache = inputs.get("past_key_values")
    cache = empty_cache(model) if cache is None else cache
    inputs["past_key_values"] = cache if length_of(cache) else filled(cache, tokens, model, sizes)
    past = length_of(cache) - tokens.columns
    if is_encoder_decoder(model):
        width = _width(inputs, ("decoder_input_ids", "decoder_inputs_embeds", "labels"))
        _with_mask(inputs, tokens, "decoder_attention_mask", past + width)
    else:
        width = _width(inputs, ("input_ids", "inputs_embeds"))
        _with_mask(inputs, tokens, "attention_mask", past + width)
    _with_positions(inputs, tokens, model, first=past, width=width)
    return inputs


def length_of(cache: Cache | None) -> int:
    """How many columns a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def empty_cache(model: Any) -> Cache:
    """A new cache of the kind that the model's own would be."""
    if is_encoder_decoder(model):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def filled(cache: Cache, tokens: VirtualTokens, model: Any, sizes: Sizes) -> Cache:
    """The cache, in which every layer now holds its keys and values of the tokens."""
    blocks = tokens.values.to(_dtype(model, tokens.values.device)).reshape(
        tokens.values.shape[0], tokens.columns, sizes.layers, 2, sizes.heads, -1
    )
    held = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    devices = _layer_devices(model)
    for layer in range(len(held) or decoder_layers(model, sizes.layers)):
        block = blocks[:, :, sizes.stride * layer % sizes.layers].to(devices.get(layer, blocks.device))
        key, value = block.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, head_dim)
        held.update(key, value, layer)
    return cache


def _dtype(model: Any, device: torch.device) -> torch.dtype:
    """The type of a model's own keys and values."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return model.dtype  # type: ignore[no-any-return]


def decoder_layers(model: Any, default: int) -> int:
    """How many layers of an encoder-decoder model the decoder has."""
    names = ("num_decoder_layers", "decoder_layers")
    return next((getattr(model.config, name) for name in names if getattr(model.config, name, None)), default)


def _layer_devices(model: Any) -> dict[int, Any]:
    """The devices of numbered layers, where accelerate has spread a model over several."""
    spread: Mapping[str, Any] = getattr(model, "hf_device_map", None) or {}
    numbered = {name.rpartition(".")[2]: device for name, device in spread.items() if device not in ("cpu", "disk")}
    return {int(name): device for name, device in numbered.items() if name.isdigit()}


def into_embeddings(
    inputs: Inputs, tokens: VirtualTokens, model: Any, *, fill: Mapping[str, int], shifted: Sequence[str] = ()
) -> Inputs:
    """The inputs with the tokens before the embeddings of the (encoder's) input.

    Args:
        inputs: keyword inputs; with a cache that holds columns, the tokens are taken to be in it already.
        tokens: the virtual tokens.
        model: the base model.
        fill: with what value each input grows, beside the attention mask.
        shifted: inputs that count columns.
    """
    inputs = dict(inputs)
    past = length_of(inputs.get("past_key_values"))
    if past and not is_encoder_decoder(model):
        past, width = past - tokens.columns, _width(inputs, ("input_ids", "inputs_embeds"))
        _with_mask(inputs, tokens, "attention_mask", past + width)
        _with_positions(inputs, tokens, model, first=past, width=width)
        return inputs
    embedded = _embedded(inputs, model, "input_ids", "inputs_embeds")
    inputs["inputs_embeds"] = torch.cat([tokens.values[:, 0].to(embedded), embedded], dim=1)
    _with_mask(inputs, tokens, "attention_mask", embedded.shape[1])
    _with_positions(inputs, tokens, model, first=0, width=embedded.shape[1])
    if inputs.get("position_ids") is not None:
        inputs["position_ids"] = tokens.before(inputs["position_ids"])
    for key, value in fill.items():
        if key != "attention_mask" and inputs.get(key) is not None:
            inputs[key] = _grown(inputs[key], tokens.columns, value)
    for key in shifted:
        if inputs.get(key) is not None:
            inputs[key] = torch.where(inputs[key] >= 0, inputs[key] + tokens.columns, inputs[key])
    return inputs


def into_decoder(inputs: Inputs, tokens: VirtualTokens, model: Any) -> Inputs:
    """The inputs of an encoder-decoder model with the second half of the tokens before the decoder's embeddings."""
    if length_of(inputs.get("past_key_values")):
        return inputs
    inputs = dict(inputs)
    labels = inputs.get("labels")
    if labels is not None:
        if inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        inputs["labels"] = _grown(labels, tokens.columns, -100)
    embedded = _embedded(inputs, model, "decoder_input_ids", "decoder_inputs_embeds")
    inputs["decoder_inputs_embeds"] = torch.cat([tokens.values[:, 1].to(embedded), embedded], dim=1)
    _with_mask(inputs, tokens, "decoder_attention_mask", embedded.shape[1])
    return inputs


def _embedded(inputs: Inputs, model: Any, ids: str, embeds: str) -> Tensor:
    """The embeddings of the input ``(rows, columns, dim)``, taken out of ``inputs``."""
    given, token_ids = inputs.pop(embeds, None), inputs.pop(ids, None)
    if given is None and token_ids is None:
        raise StateError(f"a prompt is put before {ids} or {embeds}: one of them is needed")
    return model.get_input_embeddings()(token_ids) if given is None else given  # type: ignore[no-any-return]


def _grown(tensor: Tensor, columns: int, value: int) -> Tensor:
    return torch.cat([tensor.new_full((tensor.shape[0], columns), value), tensor], dim=1)


def _with_mask(inputs: Inputs, tokens: VirtualTokens, key: str, columns: int) -> None:
    """Let the mask ``(rows, columns)`` cover the virtual tokens; make one if some of them are padding."""
    mask = inputs.get(key)
    if mask is None and tokens.mask is not None:
        mask = tokens.mask.new_ones(tokens.mask.shape[0], columns)
    if mask is None:
        return
    if mask.ndim != 2:
        raise CapabilityError(f"a prompt needs a mask of two dimensions, and {key} has {mask.ndim}")
    inputs[key] = torch.cat([tokens.ones(mask), mask], dim=1)


def _with_positions(inputs: Inputs, tokens: VirtualTokens, model: Any, *, first: int, width: int) -> None:
    """Let positions follow on the virtual tokens; ``first`` is the position without them, ``width`` the columns."""
    positions = inputs.get("position_ids")
    if positions is None and tokens.mask is not None and takes_positions(model):
        positions = torch.arange(first, first + width, device=tokens.mask.device)[None]
    if positions is not None:
        inputs["position_ids"] = positions + tokens.counts


def _width(inputs: Inputs, names: Sequence[str]) -> int:
    """How many columns the inputs have, by the first of ``names`` that is there."""
    for name in names:
        if inputs.get(name) is not None:
            return int(inputs[name].shape[1])
    raise StateError(f"a prompt needs one of {', '.join(names)}")


def takes_positions(model: Any) -> bool:
    """Whether a model can be told at which position each column stands."""
    return "position_ids" in parameters_of(model) and not is_encoder_decoder(model)


def parameters_of(model: Any) -> set[str]:
    """The names of a forward's keyword inputs, those that it hands on to its backbone among them."""
    own = inspect.signature(model.forward).parameters
    names = set(own)
    backbone = getattr(model, "base_model", model)
    if backbone is not model and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
        names |= set(inspect.signature(backbone.forward).parameters)
    return names
