"""The base model's state dict, by the names that it has without adapters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adapterkit.checkpoint import LoadResult, differences, tuner_of
from adapterkit.errors import CheckpointError, StateError
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.tuner import Tuner


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The base model's tensors by their own names, without adapters: the tensors themselves, not copies.

    Raises:
        StateError: adapters are merged into them.
    """
    tuner = tuner_of(model)
    state = tuner.model.state_dict()
    return {own: state[key] for own, key in _keys(tuner, state).items()}


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> LoadResult:
    """Give the base model of an adapted one these tensors, by the names that they have without adapters.

    Args:
        model: a `PeftModel`, or a plain model with injected adapters.
        state_dict: as `get_base_model_state_dict` gives it, or as the base model's own `state_dict` did.
        strict: every tensor must be expected, and every expected one be there.

    Raises:
        StateError: adapters are merged.
        CheckpointError: with ``strict``, what does not fit; nothing is changed then.
    """
    tuner = tuner_of(model)
    state = tuner.model.state_dict()
    keys = _keys(tuner, state)
    problems = differences({own: state[key] for own, key in keys.items()}, state_dict, ignore_shapes=False)
    if problems and strict:
        raise CheckpointError("the state dict does not fit the base model:\n" + "\n".join(problems))
    tuner.model.load_state_dict({keys[own]: t for own, t in state_dict.items() if own in keys}, strict=False)
    return LoadResult([own for own in keys if own not in state_dict], [own for own in state_dict if own not in keys])


def _keys(tuner: Tuner, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Where ``state`` has what the base model calls by its own names: own name -> key."""
    if tuner.merged_adapters:
        raise StateError(f"adapters {list(tuner.merged_adapters)} are merged into the base model: unmerge first")
    inner = {target: _inner(target, layer) for target, layer in {**tuner.layers, **tuner.copies}.items()}
    found = {}
    for key in state:
        target = next((key[:at] for at, char in enumerate(key) if char == "." and key[:at] in inner), None)
        if target is None:
            found[key] = key
        elif key.startswith(f"{inner[target]}."):
            found[target + key.removeprefix(inner[target])] = key
    return found


def _inner(name: str, layer: nn.Module) -> str:
    """The name of the frozen module in what stands around it."""
    while isinstance(layer, AdaptedLayer | CopiedLayer):
        child = "base_layer" if isinstance(layer, AdaptedLayer) else "original_module"
        name, layer = f"{name}.{child}", getattr(layer, child)
    return name
