"""Prompts around a whole model: calling it, and generating, with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, StaticCache

from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.prompts.places import (
    Sizes,
    empty_cache,
    filled,
    into_cache,
    into_decoder,
    into_embeddings,
    left_padded,
)
from adapterkit.prompts.tokens import (
    Inputs,
    VirtualTokens,
    cache_name,
    gather,
    is_encoder_decoder,
    length_of,
    taken_cache,
    takes_positions,
)

if TYPE_CHECKING:
    from adapterkit.model import PeftModel


def get_prompt(peft_model: PeftModel, batch_size: int, task_ids: Tensor | None = None) -> Tensor | Cache:
    """The active adapter's virtual tokens: embeddings ``(batch_size, tokens, dim)``, or a cache that holds them."""
    prompt = _prompt_of(peft_model, peft_model.active_adapter)
    tokens = gather(peft_model.prompt_encoder, peft_model.active_adapters, None, batch_size, task_ids)
    if prompt.place == "embeddings":
        return tokens.values.flatten(1, 2)
    model = peft_model.get_base_model()
    return filled(empty_cache(model), tokens, model, _sizes_of(peft_model))


def table_of(peft_model: PeftModel, name: str) -> Tensor:
    """An adapter's table ``(tokens, width)``, as it stands in a file; on the CPU."""
    return _prompt_of(peft_model, name).tensors()["prompt_embeddings"].cpu()


def token_numbers(peft_model: PeftModel) -> dict[str, Tensor]:
    """The numbers of the virtual tokens of every adapter, ``(tokens,)``, those of a decoder's half included."""
    configs: Mapping[str, Any] = peft_model.peft_config
    counts = {
        n: configs[n].num_virtual_tokens * configs[n].num_transformer_submodules for n in peft_model.prompt_encoder
    }
    return {name: torch.arange(count) for name, count in counts.items()}


def backbone_name(model: Any) -> str:
    """Name of the attribute that holds a model's backbone; empty if the model is one itself."""
    name: str = getattr(model, "base_model_prefix", "")
    return name if name and getattr(model, name, model) is not model else ""


def _prompt_of(peft_model: PeftModel, name: str) -> PromptAdapter:
    peft_model.base_model.require(name)
    if name not in peft_model.prompt_encoder:
        raise CapabilityError(f"{peft_model.peft_config[name].peft_type} has no virtual tokens")
    return peft_model.prompt_encoder[name]  # type: ignore[return-value]


def call_with_prompt(peft_model: PeftModel, prompt: PromptAdapter, args: tuple[Any, ...], kwargs: Inputs) -> Any:
    """The base model's forward with virtual tokens in place.

    Raises:
        CapabilityError: the model or the task cannot take the tokens; nothing is left out silently.
    """
    model = peft_model.get_base_model()
    task_ids = _task_ids(peft_model, prompt, kwargs)
    inputs = keyword_inputs(model, args, kwargs)
    inputs, tokens = with_tokens(peft_model, prompt, inputs, task_ids)
    return_dict = inputs.get("return_dict")
    if prompt.place == "cache":
        _check_checkpointing(model)
        cache = inputs[cache_name(model)]
        before = length_of(cache)
        outputs = peft_model.base_model(**inputs)
        _check_used(model, cache, before)
        return outputs
    trimmed = peft_model.trimmed if not length_of(inputs.get(cache_name(model))) else ()
    if not trimmed:
        return peft_model.base_model(**inputs)
    outputs = peft_model.base_model(**{**inputs, "return_dict": True})
    for key in trimmed:
        outputs[key] = outputs[key][:, tokens.columns :]
    return outputs.to_tuple() if return_dict is False else outputs


def _task_ids(peft_model: PeftModel, prompt: PromptAdapter, kwargs: Inputs) -> Tensor | None:
    """``task_ids``, where the prompt depends on them."""
    task_ids = peft_model.base_model.selection.inputs.get("task_ids")
    if (task_ids is None) == prompt.conditional or "task_ids" in kwargs:
        needs = "needs task_ids, one for every row" if prompt.conditional else "takes no task_ids"
        raise CapabilityError(f"{type(prompt).__name__} {needs}")
    return task_ids


def with_tokens(
    peft_model: PeftModel, prompt: PromptAdapter, inputs: Inputs, task_ids: Tensor | None, *, decoder: bool = True
) -> tuple[Inputs, VirtualTokens]:
    """The keyword inputs of a model's forward with the virtual tokens of the selected adapters, and these tokens.

    With ``decoder`` false the inputs are an encoder's alone.

    Raises:
        StateError: there is no input, or ``task_ids`` has another number of rows.
        CapabilityError: the model cannot take the tokens.
    """
    model, selection = peft_model.get_base_model(), peft_model.base_model.selection
    rows = _rows(inputs)
    if task_ids is not None:
        if rows % len(task_ids):
            raise StateError(f"task_ids has {len(task_ids)} entries for a batch of {rows} rows")
        task_ids = task_ids.repeat_interleave(rows // len(task_ids))
    tokens = gather(peft_model.prompt_encoder, selection.active, selection.routes, rows, task_ids)
    if tokens.mask is not None:
        _check_unequal(peft_model, prompt)
    if prompt.place == "cache":
        return into_cache(inputs, tokens, model, _sizes_of(peft_model)), tokens
    if pools(peft_model, "last"):
        inputs = left_padded(inputs, model)
    if not is_encoder_decoder(model) or inputs.get("encoder_outputs") is None:
        inputs = into_embeddings(inputs, tokens, model, fill=peft_model.fill, shifted=peft_model.shifted)
    if prompt.in_decoder and tokens.values.shape[1] == 2 and decoder:
        inputs = into_decoder(inputs, tokens, model)
    return inputs, tokens


def _rows(inputs: Inputs) -> int:
    for name, value in inputs.items():
        if name.endswith(("input_ids", "inputs_embeds")) and value is not None:
            return value.shape[0]  # type: ignore[no-any-return]  # a length would fix it where a program is exported
    raise StateError("a prompt needs input_ids or inputs_embeds")


def _sizes_of(peft_model: PeftModel) -> Sizes:
    selection = peft_model.base_model.selection
    names = selection.active if selection.routes is None else selection.routes.rows
    config: Any = peft_model.peft_config[next(iter(names))]
    return Sizes(config.num_layers, config.num_attention_heads, config.num_transformer_submodules)


def pools(peft_model: PeftModel, column: str) -> bool:
    """Whether a model makes one vector of every row's ``first`` or ``last`` column."""
    names = {name.rpartition(".")[2] for name in peft_model.base_model.names}
    return any(name in names for name, which in peft_model.pooled_by.items() if which == column)


def _check_unequal(peft_model: PeftModel, prompt: PromptAdapter) -> None:
    """Whether rows may have different numbers of virtual tokens: shorter prompts begin with padding."""
    model = peft_model.get_base_model()
    if prompt.place == "embeddings" and pools(peft_model, "first"):
        why = "it reads the first column, which would be padding"
    elif hasattr(model.config, "max_position_embeddings") and not takes_positions(model):
        why = "it has learnt positions, and takes no position_ids to set them right"
    else:
        return
    method = next(iter(peft_model.peft_config.values())).peft_type
    raise CapabilityError(
        f"{method}: adapter_names for a {type(model).__name__} need prompts of the same number of virtual tokens in "
        f"every row, and no rows without: {why}"
    )


def _check_used(model: nn.Module, cache: Cache, before: int) -> None:
    """A cache that has not grown was not looked at."""
    if length_of(cache) <= before:
        raise CapabilityError(f"{type(model).__name__} left out the prompt in its key-value cache: its layers use none")


def _check_checkpointing(model: nn.Module) -> None:
    """While it trains, a layer that is computed again in backward drops the cache, and the prompt with it."""
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise CapabilityError("a prompt in the key-value cache excludes gradient checkpointing: disable one of them")


def generate_with_prompt(peft_model: PeftModel, prompt: PromptAdapter, args: tuple[Any, ...], kwargs: Inputs) -> Any:
    """The base model's ``generate`` with virtual tokens in place, with any cache and search it offers.

    The tokens are no part of the sequences: not of those returned, nor of those that processors and criteria see.

    Raises:
        CapabilityError: the tokens have no place before what is given to the encoder.
    """
    model: Any = peft_model.get_base_model()
    task_ids = _task_ids(peft_model, prompt, kwargs)
    tokens_in_encoder = is_encoder_decoder(model) and prompt.place == "embeddings"
    if tokens_in_encoder:
        if args:
            kwargs, args = {**kwargs, model.main_input_name: args[0]}, args[1:]
        if kwargs.pop("inputs", None) is not None or kwargs.get("encoder_outputs") is not None:
            raise CapabilityError("generate with a prompt in the encoder needs input_ids or inputs_embeds")
        kwargs, _ = with_tokens(peft_model, prompt, kwargs, task_ids, decoder=False)

    def place(inputs: Inputs) -> Inputs:
        return with_tokens(peft_model, prompt, inputs, task_ids)[0]

    if tokens_in_encoder and not prompt.in_decoder:
        return model.generate(*args, **kwargs)
    prompts: Any = peft_model.prompt_encoder
    with _placing(model, place, longest=max(other.num_virtual_tokens for other in prompts.values())):
        return model.generate(*args, **kwargs)


@contextmanager
def _placing(model: Any, place: Callable[[Inputs], Inputs], *, longest: int) -> Iterator[None]:
    """Inside the block, every step of the model's ``generate`` has its inputs changed by ``place``."""
    prepare = model.prepare_inputs_for_generation

    @wraps(prepare)
    def prepare_with_tokens(input_ids: Tensor, *args: Any, **kwargs: Any) -> Inputs:
        cache = taken_cache(kwargs)
        if kwargs.get("use_cache") is False:
            cache = None  # what the last step left behind: this one is given all columns again
        if kwargs.get("is_first_iteration") and length_of(cache) and kwargs.get("next_sequence_length") is not None:
            kwargs["next_sequence_length"] += longest  # the cache given to generate holds them, the sequence does not
        # Without the cache in sight no mask of four dimensions is made, which would have to be undone.
        inputs = prepare(input_ids, *args, **kwargs)
        if cache is not None:
            inputs[cache_name(model)] = _roomy(cache, model, longest)
        return place(inputs)

    own = {name: value for name, value in vars(model).items() if name == "prepare_inputs_for_generation"}
    model.prepare_inputs_for_generation = prepare_with_tokens
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation
        vars(model).update(own)  # somebody's who has put one into the instance, too


def _roomy(cache: Cache, model: Any, columns: int) -> Cache:
    """A cache that has room for the virtual tokens, too, where generate has made one of a fixed size."""
    if not isinstance(cache, StaticCache) or length_of(cache) or getattr(cache, "_is_user_defined", False):
        return cache
    return StaticCache(
        config=model.config.get_text_config(decoder=True), max_cache_len=cache.get_max_length() + columns
    )


def keyword_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """The inputs of a model's forward by name."""
    parameters = inspect.signature(model.forward).parameters
    inputs = dict(inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments)
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(inputs.pop(name, {}))
    cache = taken_cache(inputs)
    return inputs if cache is None else {**inputs, cache_name(model): cache}
