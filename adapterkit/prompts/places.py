"""Where virtual tokens go in a model's keyword inputs: into the key-value cache, or before the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache

from adapterkit.errors import CapabilityError, StateError
from adapterkit.prompts.sizes import layer_sizes
from adapterkit.prompts.tokens import (
    Inputs,
    VirtualTokens,
    cache_name,
    columns_in,
    is_encoder_decoder,
    length_of,
    takes_positions,
    width_of,
    with_mask,
    with_positions,
)


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
    inputs, name = dict(inputs), cache_name(model)
    cache = inputs.get(name)
    cache = empty_cache(model) if cache is None else cache
    inputs[name] = cache if length_of(cache) else filled(cache, tokens, model, sizes)
    past = length_of(cache) - tokens.columns
    if is_encoder_decoder(model):
        width = width_of(inputs, ("decoder_input_ids", "decoder_inputs_embeds", "labels"))
        with_mask(inputs, tokens, "decoder_attention_mask", past + width)
    else:
        width = width_of(inputs, ("input_ids", "inputs_embeds"))
        with_mask(inputs, tokens, "attention_mask", past + width)
    with_positions(inputs, tokens, model, first=past, width=width)
    return inputs


def empty_cache(model: Any) -> Cache:
    """A new cache of the kind that the model's own would be."""
    if is_encoder_decoder(model):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def filled(cache: Cache, tokens: VirtualTokens, model: Any, sizes: Sizes) -> Cache:
    """The cache, in which every layer now holds its keys and values of the tokens.

    Raises:
        CapabilityError: a layer keeps a state in their place, or has more or wider heads than the tokens.
    """
    blocks = tokens.values.to(_dtype(model, tokens.values.device)).reshape(
        tokens.values.shape[0], tokens.columns, sizes.layers, 2, sizes.heads, -1
    )
    held = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    devices, unlike = _layer_devices(model), _unlike_layers(model)
    own = [False] * (len(held) or decoder_layers(model, sizes.layers))
    shared = getattr(held, "is_dummy", own) if len(held) else own  # an older transformers leaves such layers out
    for layer in range(len(shared)):
        if shared[layer]:  # it reads another layer's keys and values
            continue
        if layer < len(held) and not hasattr(held.layers[layer], "update"):
            raise CapabilityError(
                f"layer {layer} of a {type(model).__name__} keeps a state in the place of keys and values: a prompt in "
                "the key-value cache does not reach it"
            )
        block = blocks[:, :, sizes.stride * layer % sizes.layers].to(devices.get(layer, blocks.device))
        if unlike:
            block = _narrowed(block, *unlike[layer])
        key, value = block.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, head_dim)
        held.update(key, value, layer)
    return cache


def _unlike_layers(model: Any) -> list[tuple[int, int]]:
    """The number and the width of every layer's heads, if they differ from layer to layer; else nothing."""
    text = model.config.get_text_config(decoder=True)
    sizes = [size for size in layer_sizes(text) if None not in size] if not is_encoder_decoder(model) else []
    return sizes if len(set(sizes)) > 1 else []  # type: ignore[return-value]


def _narrowed(block: Tensor, heads: int, width: int) -> Tensor:
    """The first heads of a layer's keys and values, and their first entries: ``(rows, tokens, 2, heads, width)``."""
    if block.shape[3] < heads or block.shape[4] < width:
        raise CapabilityError(
            f"the prompt has {block.shape[3]} heads of width {block.shape[4]}, and a layer {heads} of {width}: "
            "leave num_attention_heads and token_dim to the model"
        )
    return block[:, :, :, :heads, :width]


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
        inputs: keyword inputs; with a cache that holds columns, or the state of a recurrent model, the tokens are taken
            to be in it already.
        tokens: the virtual tokens.
        model: the base model.
        fill: with what value each input grows, beside the attention mask.
        shifted: inputs that count columns.
    """
    inputs = dict(inputs)
    if _has_state(inputs):
        return inputs
    past = length_of(inputs.get(cache_name(model)))
    if past and not is_encoder_decoder(model):
        past, width = past - tokens.columns, width_of(inputs, ("input_ids", "inputs_embeds"))
        with_mask(inputs, tokens, "attention_mask", past + width)
        with_positions(inputs, tokens, model, first=past, width=width)
        return inputs
    embedded = _embedded(inputs, model, "input_ids", "inputs_embeds")
    inputs["inputs_embeds"] = torch.cat([tokens.values[:, 0].to(embedded), embedded], dim=1)
    with_mask(inputs, tokens, "attention_mask", embedded.shape[1])
    with_positions(inputs, tokens, model, first=0, width=embedded.shape[1])
    if inputs.get("position_ids") is not None:
        inputs["position_ids"] = tokens.before(inputs["position_ids"])
    for key, value in fill.items():
        if key != "attention_mask" and inputs.get(key) is not None:
            inputs[key] = _grown(inputs[key], tokens.columns, value)
    for key in shifted:
        if inputs.get(key) is not None:
            inputs[key] = torch.where(inputs[key] >= 0, inputs[key] + tokens.columns, inputs[key])
    return inputs


def _has_state(inputs: Inputs) -> bool:
    """Whether a recurrent model goes on from earlier columns, which are in its state (Mamba's, RWKV's)."""
    if inputs.get("state") is not None:
        return True
    cache = inputs.get("cache_params", inputs.get("cache"))
    if cache is None or columns_in(cache) is not None:
        return False
    holds_some = getattr(cache, "has_previous_state", None)
    return holds_some is None or bool(holds_some())


def left_padded(inputs: Inputs, model: Any) -> Inputs:
    """The inputs with the padding of every row moved to its left, and positions as they were.

    A model that reads a row's last real column finds it by the token ids, which embeddings take the place of.
    """
    ids, mask, pad = inputs.get("input_ids"), inputs.get("attention_mask"), getattr(model.config, "pad_token_id", None)
    if mask is None and ids is not None and pad is not None:
        mask = (ids != pad).long()
    if mask is None:
        return inputs
    order = mask.argsort(dim=1, stable=True)  # what is masked comes first
    positions = inputs.get("position_ids")
    positions = torch.arange(mask.shape[1], device=mask.device)[None] if positions is None else positions
    columns = {**inputs, "attention_mask": mask, "position_ids": positions.expand(mask.shape)}
    for name in ("input_ids", "attention_mask", "position_ids", "token_type_ids"):
        if columns.get(name) is not None:
            columns[name] = columns[name].gather(1, order)
    if columns.get("inputs_embeds") is not None:
        embeds = columns["inputs_embeds"]
        columns["inputs_embeds"] = embeds.gather(1, order[..., None].expand(embeds.shape))
    if not takes_positions(model):
        del columns["position_ids"]
    return columns


def into_decoder(inputs: Inputs, tokens: VirtualTokens, model: Any) -> Inputs:
    """The inputs of an encoder-decoder model with the second half of the tokens before the decoder's embeddings."""
    if length_of(inputs.get(cache_name(model))):
        return inputs
    inputs = dict(inputs)
    labels = inputs.get("labels")
    if labels is not None:
        if inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        inputs["labels"] = _grown(labels, tokens.columns, -100)
    embedded = _embedded(inputs, model, "decoder_input_ids", "decoder_inputs_embeds")
    inputs["decoder_inputs_embeds"] = torch.cat([tokens.values[:, 1].to(embedded), embedded], dim=1)
    with_mask(inputs, tokens, "decoder_attention_mask", embedded.shape[1])
    return inputs


def _embedded(inputs: Inputs, model: Any, ids: str, embeds: str) -> Tensor:
    """The embeddings of the input ``(rows, columns, dim)``, taken out of ``inputs``."""
    given, token_ids = inputs.pop(embeds, None), inputs.pop(ids, None)
    if given is None and token_ids is None:
        raise StateError(f"a prompt is put before {ids} or {embeds}: one of them is needed")
    return model.get_input_embeddings()(token_ids) if given is None else given  # type: ignore[no-any-return]


def _grown(tensor: Tensor, columns: int, value: int) -> Tensor:
    return torch.cat([tensor.new_full((tensor.shape[0], columns), value), tensor], dim=1)
