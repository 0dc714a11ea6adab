"""Which adapter an error in a model's forward comes from: looked for when there is one, and at no cost before."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import AdapterkitError
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.registry import declared_as


def name_adapter(error: BaseException, tuner: Tuner, prompts: nn.ModuleDict) -> None:
    """Note beside an error of torch's or a method's in which adapter it was raised, or which one gives on something of
    another shape or type. To be called before the forward's inputs are forgotten."""
    if torch.compiler.is_compiling() or not isinstance(error, Exception) or isinstance(error, AdapterkitError):
        return
    note = _raised_in(error, tuner, prompts)
    if note is None and not isinstance(error, torch.OutOfMemoryError):
        note = next(chain(_misshapen(tuner), _in_cache(error, tuner, prompts)), None)
    if note is not None:
        error.add_note(note)


def _raised_in(error: Exception, tuner: Tuner, prompts: nn.ModuleDict) -> str | None:
    """The innermost method of an adapter that the error has come through."""
    parts = {id(part): (name, target) for name in tuner.known for target, part in tuner.parts(name)}
    parts.update({id(prompt): (name, "") for name, prompt in prompts.items()})
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = parts.get(id(frame.f_locals.get("self")))
        if owner is not None:
            found = f"raised in {frame.f_code.co_name} of {_described(tuner, *owner)}"
    return found


def _described(tuner: Tuner, name: str, target: str) -> str:
    config = tuner.configs.get(name)
    method = "an injected adapter" if config is None else declared_as(type(config))
    return f"{method}: adapter {name!r}" + (f" at {target!r}, {tuner.layers[target].base_layer}" if target else "")


def _misshapen(tuner: Tuner) -> Iterator[str]:
    """The active adapters of linear layers that do not give what they are given, one of each class and size."""
    selection, seen = tuner.selection, set()
    names = selection.active if selection.routes is None else tuple(selection.routes.rows)
    for target, layer in tuner.layers.items():
        for name in names if layer.view.kind == "linear" else ():
            for adapter in layer.chain((name,)):
                key = type(adapter), layer.view.in_features, layer.view.out_features
                if key not in seen:
                    seen.add(key)
                    with suppress(Exception):  # it cannot be tried alone
                        yield from (f"{fault}: {_described(tuner, name, target)}" for fault in _faults(adapter))


def _in_cache(error: Exception, tuner: Tuner, prompts: nn.ModuleDict) -> Iterator[str]:
    """The active prompt in the key-value cache, where columns of another shape could not be put behind it."""
    for name in tuner.active_adapters if "Sizes of tensors must match" in str(error) else ():
        if name in prompts and prompts[name].place == "cache":
            config: Any = tuner.configs[name]
            sizes = f"num_attention_heads={config.num_attention_heads}, token_dim={config.token_dim}"
            yield (
                f"{_described(tuner, name, '')} puts keys and values into the cache, by {sizes}: they have to be as "
                "those that this model caches, and no prompt is like keys and values that are compressed, as DeepSeek's"
            )


@torch.no_grad()
def _faults(adapter: LayerAdapter) -> Iterator[str]:
    view = adapter.layer
    x, y = (
        torch.zeros(2, size, dtype=view.dtype, device=view.device) for size in (view.in_features, view.out_features)
    )
    with torch.autocast(view.device.type, enabled=False):
        given: dict[str, tuple[Tensor, Any]] = {
            "adapt_input": (x, adapter.adapt_input(x)),
            "adapt_output": (y, adapter.adapt_output(y, x)),
        }
    for verb, (before, after) in given.items():
        if not isinstance(after, Tensor):
            yield f"{verb} gives no tensor, but {type(after).__name__}"
        elif after.shape != before.shape or after.dtype != before.dtype:
            yield f"{verb} gives {_what(after)} for {_what(before)}"


def _what(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
