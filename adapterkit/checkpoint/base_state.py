"""The base model's state dict, by the names that it has without adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from adapterkit.checkpoint.fit import differences
from adapterkit.checkpoint.state import LoadResult
from adapterkit.errors import CheckpointError, StateError
from adapterkit.given import check_mapping
from adapterkit.injection.lookup import tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer


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
    check_mapping(state_dict, "state_dict", "a mapping of tensors by key")
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
    places = _places(tuner)
    found = {}
    for key in state:
        ends = (at for at in range(len(key) - 1, 0, -1) if key[at] == ".")
        path = next((key[:at] for at in ends if key[:at] in places), None)
        own = places[path] if path is not None else ""
        if own is not None:
            found[key if path is None else own + key.removeprefix(path)] = key
    return found


def _places(tuner: Tuner) -> dict[str, str | None]:
    """What adapters have put into the model, by path: None, and the names of the frozen modules inside of it."""
    places: dict[str, str | None] = {}
    inner: dict[str, str] = {}
    for target in sorted({*tuner.layers, *tuner.copies}, key=lambda name: name.count(".")):
        owner = next((name for name in _holders(target) if name in inner), "")
        path, layer = inner.get(owner, "") + target.removeprefix(owner), tuner.names[target]
        places[path] = None
        while isinstance(layer, AdaptedLayer | CopiedLayer):
            child = "base_layer" if isinstance(layer, AdaptedLayer) else "original_module"
            path, layer = f"{path}.{child}", getattr(layer, child)
        places[path], inner[target] = target, path
    return places


def _holders(name: str) -> Iterator[str]:
    """The names of the modules around one, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
