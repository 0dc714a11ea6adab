"""A base model made deeper by ranges of its own layers stacked one after another (``layer_replication``).

Replicas share their weights, and each has adapters of its own: ``[[0, 4], [2, 5]]`` of the layers 0 to 4 are the layers
0, 1, 2, 3, 2, 3, 4, numbered 0 to 6 (SOLAR's depth up-scaling, Kim et al., 2023, https://arxiv.org/abs/2312.15166).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from adapterkit.errors import CapabilityError, ConfigError, StateError

if TYPE_CHECKING:
    from adapterkit.config.base import PeftConfig
    from adapterkit.injection.tuner import Tuner

FIELD = "layer_replication"
Ranges = Sequence[Sequence[int]]


@dataclass(eq=False)
class Before:
    """What was there before replicas came."""

    layers: nn.ModuleList
    place: str
    """Name of the list of layers."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Those of the model's settings that were changed."""


class ReplicatedLayers(nn.ModuleList):
    """The replicas, in the place of the layers they are made of. A slice of them is one of these, too."""

    ranges: list[list[int]]
    before: Before


@contextmanager
def layers_for(tuner: Tuner, config: PeftConfig) -> Iterator[None]:
    """Inside the block a tuner's model has the layers that a new adapter asks for; they stay, unless the block fails.

    Raises:
        StateError: there are adapters, and other layers than it asks for.
        ConfigError: a range is not one of the model's layers.
        CapabilityError: it is not known which the layers are.
    """
    ranges: Any = getattr(config, FIELD, None)
    held = next((module for module in tuner.names.values() if isinstance(module, ReplicatedLayers)), None)
    if held is not None and not tuner.known:
        put_back(tuner.model)
        held, tuner._modules_by_name = None, None
    if (None if held is None else held.ranges) == (ranges and [list(pair) for pair in ranges]):
        yield
        return
    if tuner.known:
        there = "as they were" if held is None else f"replicated as {held.ranges}"
        raise StateError(f"{FIELD}={ranges}: this model has adapters, and its layers are {there}")
    replicate(tuner.model, ranges)
    tuner._modules_by_name = None
    try:
        yield
    except BaseException:
        put_back(tuner.model)
        tuner._modules_by_name = None
        raise


def replicated(model: nn.Module) -> ReplicatedLayers | None:
    """The replicas in a model, if there are any."""
    return next((module for module in model.modules() if isinstance(module, ReplicatedLayers)), None)


def replicate(model: nn.Module, ranges: Ranges) -> None:
    """Stack ranges of a model's layers, in place.

    Raises:
        ConfigError: a range is not one of the model's layers.
        CapabilityError: it is not known which the layers are.
    """
    place, layers = _layers_of(model)
    outside = [list(pair) for pair in ranges if pair[1] > len(layers)]
    if outside:
        raise ConfigError(f"{FIELD}: {place} has the layers 0 to {len(layers) - 1}, and {outside} ends after them")
    chosen = [index for start, end in ranges for index in range(start, end)]
    replicas = [_replica(layers[index], number) for number, index in enumerate(chosen)]
    stacked = ReplicatedLayers(replicas).train(layers.training)
    stacked.ranges, stacked.before = [list(pair) for pair in ranges], Before(layers, place)
    _set(model, place, stacked)
    config = _config_of(model)
    for name, value in _by_layer(config, len(layers)).items():
        stacked.before.settings[name] = value
        new = len(chosen) if isinstance(value, int) else [value[index] for index in chosen]
        setattr(config, name, new)


def put_back(model: nn.Module) -> None:
    """Undo `replicate`."""
    stacked = replicated(model)
    if stacked is not None:
        _set(model, stacked.before.place, stacked.before.layers)
        for name, value in stacked.before.settings.items():
            setattr(_config_of(model), name, value)


def keep(model: nn.Module) -> None:
    """Make the replicas plain layers, with weights of their own."""
    stacked = replicated(model)
    if stacked is None:
        return
    seen: set[int] = set()
    for layer in stacked:
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in seen:
                    module._parameters[name] = copy.deepcopy(parameter)
                seen.add(id(parameter))
    _set(model, stacked.before.place, nn.ModuleList(stacked).train(stacked.training))


def _layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a model's layers, and its name."""
    size = getattr(_config_of(model), "num_hidden_layers", None)
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) and n}
    outer = {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}
    fitting = {name: module for name, module in outer.items() if size is None or len(module) == size}
    if len(fitting) != 1:
        what = f"lists of {size} modules" if size is not None else "lists of modules"
        raise CapabilityError(f"{FIELD}: a {type(model).__name__} has {len(fitting)} {what}, not one: {list(fitting)}")
    name, layers = next(iter(fitting.items()))
    if any(hasattr(module, "_hf_hook") for module in layers.modules()):
        raise CapabilityError(f"{FIELD}: {name} is moved between devices as it is called, which replicas cannot be")
    return name, layers


def _replica(layer: nn.Module, number: int) -> nn.Module:
    """A layer of the same weights, buffers and settings, and a number of its own."""
    shared: list[Any] = [*layer.parameters(), *layer.buffers()]
    shared += [module.config for module in layer.modules() if hasattr(module, "config")]
    fresh = copy.deepcopy(layer, {id(value): value for value in shared})
    for module in fresh.modules():
        if isinstance(module.__dict__.get("layer_idx"), int):
            module.layer_idx = number  # type: ignore[assignment]  # the place of its keys and values in a cache
    return fresh


def _config_of(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _by_layer(config: Any, size: int) -> dict[str, Any]:
    """The settings of a model that say how many layers it has, or have an entry for each."""
    own = vars(config) if hasattr(config, "__dict__") else {}
    lists = {n: v for n, v in own.items() if "layer" in n and isinstance(v, list) and len(v) == size}
    return {**({"num_hidden_layers": size} if "num_hidden_layers" in own else {}), **lists}


def _set(model: nn.Module, place: str, layers: nn.Module) -> None:
    owner, _, name = place.rpartition(".")
    setattr(model.get_submodule(owner), name, layers)
