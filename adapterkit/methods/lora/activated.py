r"""Activated LoRA (Greenewald et al., 2025), https://arxiv.org/abs/2504.12397: the adapter acts from the start of a
sequence of tokens on. What a base model has computed before it, keys and values included, serves the adapter, too.

.. math:: y_t = W x_t + [t \ge t_0] \, s B A x_t

``t_0`` is where the last occurrence of the sequence starts in the row; rows without one are the base model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapterkit.errors import CapabilityError, StateError

INPUT = "alora_offsets"
NEVER = 1 << 40
"""The start of an occurrence that is not there."""

_REFUSED = ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size")
"""Ways to generate in which a layer cannot tell which tokens its input is."""


def spans(config: Any, input_ids: Any, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Where each row's adapter starts to act: ``(rows, 2)``, the start ``t_0``, and the length of the rows.

    Args:
        config: has the tokens.
        input_ids: ``(rows, length)``.
        options: the other inputs. ``alora_offsets``, one number of tokens or None for each row, says how many of the
            last ones the adapter acts on, where the sequence stands in tokens that were given before.

    Raises:
        CapabilityError: there are no ids to look for the sequence in, or generation goes over them piece by piece.
    """
    field = "alora_invocation_tokens"
    for name in _REFUSED:
        if options.get(name) or getattr(options.get("generation_config"), name, None):
            raise CapabilityError(
                f"{field}: {name} is not possible: layers cannot tell which tokens are before the start"
            )
    given = options.get(INPUT)
    if given is not None:
        length = _length(input_ids, options)
        told = [NEVER if offset is None or offset <= 0 else length - int(offset) for offset in given]
        return {INPUT: torch.tensor([[start, length] for start in told])}
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        raise CapabilityError(f"{field}: the sequence is looked for in input_ids; give them, or {INPUT}")
    length, wanted = input_ids.shape[1], torch.tensor(config.alora_invocation_tokens, device=input_ids.device)
    starts = torch.full((len(input_ids),), NEVER, device=input_ids.device)
    if length >= len(wanted):
        found = (input_ids.unfold(1, len(wanted), 1) == wanted).all(-1)  # (rows, places)
        last = (found * torch.arange(1, found.shape[1] + 1, device=input_ids.device)).amax(1) - 1
        starts = torch.where(last >= 0, last, starts)
    return {INPUT: torch.stack([starts, torch.full_like(starts, length)], dim=1)}


def _length(input_ids: Any, options: Mapping[str, Any]) -> int:
    tensors = (input_ids, options.get("inputs_embeds"))
    length: int | None = next((t.shape[1] for t in tensors if isinstance(t, Tensor)), None)
    if length is None:
        raise CapabilityError(f"{INPUT} needs input_ids or inputs_embeds")
    return length


def mask(x: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """1 where the adapter acts and 0 elsewhere, ``(rows, columns, 1)`` for an input ``(rows, columns, features)``.

    An input of fewer columns than the rows had are their last ones: with a cache, those that are new. Of more columns,
    the rows have grown since, and the start is where it was.

    Raises:
        StateError: nothing says where the rows' adapters start, or the input is not made of rows of tokens.
    """
    given = inputs.get(INPUT)
    if given is None:
        raise StateError(
            "alora_invocation_tokens: where the sequence stands is found by PeftModel's forward and generate"
        )
    shape: Sequence[int] = x.shape[:-1]
    if len(shape) > 2 or shape[0] % len(given):
        raise StateError(
            f"alora_invocation_tokens: a layer's input {tuple(x.shape)} is not {len(given)} rows of tokens"
        )
    rows = given.to(x.device).repeat_interleave(shape[0] // len(given), 0)
    columns = shape[1] if len(shape) == 2 else 1
    start = rows[:, :1] - (rows[:, 1:] - columns).clamp(min=0)
    acts = torch.arange(columns, device=x.device) >= start
    return acts.to(x.dtype).reshape(*shape, 1)
