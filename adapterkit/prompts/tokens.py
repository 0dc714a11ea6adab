"""Virtual tokens in a model's keyword inputs: gathered for the rows of a batch, and put where a method wants them.

Only what transformers documents is used: ``inputs_embeds``, ``cache`` (any `transformers.Cache`; ``past_key_values``
before transformers 5.24), masks and ``position_ids``. Rows of a batch may have different numbers of tokens: shorter
prompts are padded on the left, masked, and their rows' positions count real tokens only, so that every row is computed
as if it were alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

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


_CACHES = ("cache", "past_key_values")


def cache_name(model: Any) -> str:
    """The name by which a model's forward takes its key-value cache."""
    return "cache" if "cache" in parameters_of(model) else "past_key_values"


def taken_cache(inputs: Inputs) -> Cache | None:
    """The key-value cache, by whichever name it is there, taken out of ``inputs``."""
    found = [inputs.pop(name) for name in _CACHES if name in inputs]
    return next((cache for cache in found if cache is not None), None)


def columns_in(cache: Any) -> int | None:
    """How many columns a cache holds; None if it keeps states alone, as of a recurrent model, in which none stand."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return None


def length_of(cache: Cache | None) -> int:
    """How many columns a cache holds."""
    return 0 if cache is None else columns_in(cache) or 0


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def with_mask(inputs: Inputs, tokens: VirtualTokens, key: str, columns: int) -> None:
    """Let the mask ``(rows, columns)`` cover the virtual tokens; make one if some of them are padding.

    Raises:
        CapabilityError: the mask has other dimensions.
    """
    mask = inputs.get(key)
    if mask is None and tokens.mask is not None:
        mask = tokens.mask.new_ones(tokens.mask.shape[0], columns)
    if mask is None:
        return
    if mask.ndim != 2:
        raise CapabilityError(f"a prompt needs a mask of two dimensions, and {key} has {mask.ndim}")
    inputs[key] = torch.cat([tokens.ones(mask), mask], dim=1)


def with_positions(inputs: Inputs, tokens: VirtualTokens, model: Any, *, first: int, width: int) -> None:
    """Let positions follow on the virtual tokens; ``first`` is the position without them, ``width`` the columns."""
    positions = inputs.get("position_ids")
    if positions is None and tokens.mask is not None and takes_positions(model):
        positions = torch.arange(first, first + width, device=tokens.mask.device)[None]
    if positions is not None:
        inputs["position_ids"] = positions + tokens.counts


def width_of(inputs: Inputs, names: Sequence[str]) -> int:
    """How many columns the inputs have, by the first of ``names`` that is there.

    Raises:
        StateError: none is there.
    """
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
