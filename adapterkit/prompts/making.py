"""Making the prompt of an adapter, and what is said of a method or a model that it cannot be made for."""

from __future__ import annotations

import inspect
from typing import get_args

import torch
from torch import nn

from adapterkit.config.prompt import PromptConfig
from adapterkit.errors import BrokenPluginError, CapabilityError
from adapterkit.injection.making import seeded
from adapterkit.nn.adapter import Place, PromptAdapter
from adapterkit.nn.storage import device_of
from adapterkit.prompts.tokens import cache_name, parameters_of
from adapterkit.registry import declared_as
from adapterkit.targets.tying import embedding_of


def make_prompt(config: PromptConfig, model: nn.Module, name: str, *, empty: bool = False) -> PromptAdapter:
    """A prompt adapter on the model's device, in float32 unless the model is in float64.

    Args:
        config: with every size filled in.
        model: the base model.
        name: the adapter's name, which its random start depends on, and on nothing else but the seed.
        empty: leave the values undefined, to be filled by loading.

    Raises:
        CapabilityError: the model cannot take the tokens.
        BrokenPluginError: the method makes none, or tokens of other sizes than the config's.
    """
    implementation = config.adapter_class()
    _check_claims(implementation, config)
    _check_place(implementation.place, config, model)
    first = next(model.parameters(), None)
    device = device_of(model)
    dtype = torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32
    on_meta = empty or device.type == "meta"
    with torch.device("meta") if on_meta else seeded(f"{torch.initial_seed()}/{name}/prompt"):
        try:
            prompt: PromptAdapter = implementation(config, model)
        except Exception as error:
            error.add_note(f"{declared_as(type(config))}: making {config.adapter} for a {type(model).__name__}")
            raise
        _check_table(prompt, config)
    if empty and device.type != "meta":
        return prompt.to(dtype).to_empty(device=device)
    return prompt.to(device=device, dtype=dtype)


def _check_claims(implementation: type[PromptAdapter], config: PromptConfig) -> None:
    """Whether a method can be what it says that it is."""
    method, place = f"{declared_as(type(config))}: its adapter {config.adapter}", implementation.place
    if place not in get_args(Place):
        raise BrokenPluginError(f"{method} has place={place!r}: choose one of {', '.join(get_args(Place))}")
    if implementation.conditional and "task_ids" not in config.forward_inputs:
        raise BrokenPluginError(
            f"{method} is conditional, and its config does not take the rows' tasks: forward_inputs is to name "
            "'task_ids'"
        )


def _check_place(place: str, config: PromptConfig, model: nn.Module) -> None:
    """Whether a model has what the tokens go into."""
    taken, needed = parameters_of(model), cache_name(model) if place == "cache" else "inputs_embeds"
    if needed not in taken and not _takes_anything(model):
        raise CapabilityError(
            f"{config.peft_type}: {type(model).__name__} takes no {needed}, which the prompt has to go into"
        )
    if place == "embeddings" and "input_ids" in taken and embedding_of(model) is None:
        raise CapabilityError(
            f"{config.peft_type}: {type(model).__name__} has no input embeddings (get_input_embeddings), which the "
            "prompt has to go before"
        )


def _takes_anything(model: nn.Module) -> bool:
    """Whether a forward names none of its inputs, as one that hands all of them on to another."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return bool(kinds) and set(kinds) <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


@torch.no_grad()
def _check_table(prompt: PromptAdapter, config: PromptConfig) -> None:
    """Whether a new prompt has the sizes of its config."""
    method = f"{declared_as(type(config))}: its adapter {config.adapter}"
    if not isinstance(getattr(prompt, "embedding", None), nn.Embedding):
        raise BrokenPluginError(f"{method} has no embedding: an nn.Embedding (tokens, width), made in __init__")
    count, width, layers = config.num_virtual_tokens, config.token_dim or 0, config.num_layers or 0
    wanted = [(count * halves, width) for halves in range(1, (config.num_transformer_submodules or 1) + 1)]
    if prompt.place == "cache":
        wanted = [(tokens, layers * 2 * width) for tokens, width in wanted]
    found = tuple(prompt.table().shape)
    if found not in wanted:
        raise BrokenPluginError(
            f"{method} has a table {found}, where {' or '.join(map(str, wanted))} is needed: (tokens, width), by "
            f"num_virtual_tokens={count}, token_dim={width}" + (f", num_layers={layers}" * (prompt.place == "cache"))
        )
