"""The sizes of a prompt, read off the model it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adapterkit.config.prompt import PromptConfig
from adapterkit.errors import ConfigError
from adapterkit.registry import tasks
from adapterkit.targets.tying import embedding_of

SIZE_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "token_dim": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
}
"""What the sizes are called in the configurations of models."""


def with_sizes(config: PromptConfig, model: nn.Module, task_type: str | None) -> PromptConfig:
    """The config with every size filled in that it left to the base model.

    For tokens in the cache, heads are the key-value heads and ``token_dim`` is their joint width.

    Raises:
        ConfigError: the model does not say a size; names it.
    """
    held: Any = getattr(model, "config", None)
    text = held.get_text_config() if hasattr(held, "get_text_config") else held
    sizes: dict[str, Any] = {}
    given = {} if config.adapter_class().place == "cache" else {"token_dim": _embedding_width(model)}
    for field, names in SIZE_NAMES.items():
        found = (given.get(field), *(getattr(text, name, None) for name in names))
        sizes[field] = getattr(config, field) or next((size for size in found if size is not None), None)
    missing = [field for field, size in sizes.items() if size is None]
    if missing:
        raise ConfigError(f"{config.peft_type}: {type(model).__name__} does not say {', '.join(missing)}: set them")
    if config.adapter_class().place == "cache":
        sizes.update(_cache_sizes(config, text, sizes))
    _check_stated(config, sizes)
    if "encoder_hidden_size" in type(config).model_fields:
        sizes["encoder_hidden_size"] = getattr(config, "encoder_hidden_size", None) or sizes["token_dim"]
    task = config.task_type or task_type
    halves = 1 if task is None else tasks[task.lower()].wrapper_class().halves
    sizes["num_transformer_submodules"] = config.num_transformer_submodules or halves
    return config.model_copy(update=sizes)


def _check_stated(config: PromptConfig, sizes: Mapping[str, int]) -> None:
    """
    Raises:
        ConfigError: one of the two sizes that go together in the cache is stated, and the model has another.
    """
    for field, other in (("num_attention_heads", "token_dim"), ("token_dim", "num_attention_heads")):
        stated = getattr(config, field)
        if stated is not None and stated != sizes[field]:
            raise ConfigError(
                f"{field}={stated} would do nothing without {other}: this model's keys and values have "
                f"{field}={sizes[field]}"
            )


def _embedding_width(model: nn.Module) -> int | None:
    """The width of a model's input embeddings, which may be narrower than its layers (ALBERT, ELECTRA)."""
    return getattr(embedding_of(model), "embedding_dim", None)


def _cache_sizes(config: PromptConfig, text: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    """The number of key-value heads and their joint width, unless the config states them: of the widest layer."""
    if config.token_dim and config.num_attention_heads:
        return {}
    share = sizes["token_dim"] // sizes["num_attention_heads"]
    heads, width = max(layer_sizes(text) or [(None, None)], key=lambda size: size[1] or 0)
    heads, width = heads or sizes["num_attention_heads"], width or getattr(text, "d_kv", None) or share
    return {"num_attention_heads": heads, "token_dim": heads * width}


def layer_sizes(text: Any) -> list[tuple[int | None, int | None]]:
    """The number and the width of every layer's key-value heads, as far as a model's configuration says them."""
    layers = getattr(text, "per_layer_config", None) or [text]
    return [(_key_value_heads(layer), getattr(layer, "head_dim", None)) for layer in layers]


def _key_value_heads(layer: Any) -> int | None:
    if getattr(layer, "multi_query", False) and not getattr(layer, "new_decoder_architecture", False):
        return 1  # as Falcon says it
    return getattr(layer, "num_key_value_heads", None)
