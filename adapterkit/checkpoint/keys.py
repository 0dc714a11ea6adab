"""Whose tensors an adapter's file has, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from adapterkit.errors import CheckpointError
from adapterkit.injection.lookup import COMPILED, plain, tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.adapter import Adapter
from adapterkit.nn.layer import BiasAdapter
from adapterkit.nn.parameters import ParameterAdapters
from adapterkit.nn.tokens import TokenRows
from adapterkit.ondisk.names import HEAD_PREFIX, PREFIX
from adapterkit.targets.matching import modules_of

State = dict[str, Tensor]

_COPY = re.compile(r"\.modules_to_save\.[^.]+\.")
"""What PEFT leaves in the keys of biases in modules that are trained whole: its wrapper's name and the adapter's."""


def parts_of(model: nn.Module, name: str) -> dict[str, tuple[str, nn.Module]]:
    """Everything that adapter ``name`` consists of: key stem -> (layer name, module). Stems have no prefix."""
    model = plain(model)
    tuner = tuner_of(model)
    tuner.require(name)
    found: dict[str, tuple[str, nn.Module]] = {}
    wrapped = _wrapped(tuner, name)
    for target, part in tuner.parts(name):
        path = _inside(target, wrapped) if wrapped else target
        stem = f"{path}.{part.prefix}" if isinstance(part, Adapter) else f"{path}."
        if isinstance(part, BiasAdapter) and part.layer.called and name in tuner.layers[target].adapters:
            stem += "base_layer."
        found[stem.replace(COMPILED, "")] = (target, part)
    prompts = getattr(model, "prompt_encoder", {})
    if name in prompts:
        found[""] = ("", prompts[name])
    return found


def _wrapped(tuner: Tuner, name: str) -> dict[str, int]:
    """The modules that PEFT puts wrappers around for their parameters, and how many for adapter ``name``: none for
    those of a layer inside."""
    layers = {target: layer for target, layer in tuner.layers.items() if layer.uses("parameter_adapters")}
    held: dict[str, Any] = {target: layer.parameter_adapters._modules.get(name) for target, layer in layers.items()}
    made = {target: each for target, each in held.items() if isinstance(each, ParameterAdapters)}
    return {target: sum("." not in name for name in each.parameter_names) for target, each in made.items()}


def _inside(target: str, wrapped: Mapping[str, int]) -> str:
    """A module's name through the wrappers around those that hold it."""
    parts = target.split(".")
    names = (".".join(parts[: end + 1]) for end in range(len(parts) - 1))
    inner = [part + ".base_layer" * wrapped.get(name, 0) for part, name in zip(parts, names, strict=False)]
    return ".".join([*inner, parts[-1]])


def prefix_of(model: nn.Module, key: str, name: str) -> str:
    """What stands before ``key`` in the file of this model's adapter."""
    if not isinstance(model._modules.get("base_model"), Tuner):
        return ""
    prompts: Any = model._modules.get("prompt_encoder")
    if not prompts or name not in prompts:
        return PREFIX
    return "" if key in prompts[name].tensors() else HEAD_PREFIX


def given_by(state: State, expected: Iterable[str]) -> State:
    """A file's tensors by the keys that are expected here, but for what PEFT's wrappers write of the original. Of a
    tensor that is written twice, the one under the key itself."""
    given: State = {}
    for key, tensor in state.items():
        if ".original_module." not in key:
            plain = _plain(key, expected)
            if plain not in given or ".modules_to_save." not in key:
                given[plain] = tensor
    return given


def _plain(key: str, expected: Iterable[str]) -> str:
    """A file's key without its prefix, and without the names of PEFT's own wrappers around a layer."""
    key = key.replace(COMPILED, "")
    if key not in expected:  # the longer prefix may be the shorter one and a ``model`` in the base
        bare = [key.removeprefix(prefix) for prefix in (PREFIX, HEAD_PREFIX) if key.startswith(prefix)] or [key]
        key = next((name for name in bare if name in expected), bare[0])
    if ".modules_to_save." in key:
        unnamed = key.replace(".modules_to_save.", ".")
        named = _COPY.sub(".", key)  # inside a module of several layers the adapter's name is left in
        key = named if named in expected and unnamed not in expected else unnamed
    inner = key.replace(".base_layer.", ".")
    return inner if inner in expected and key not in expected else key


def targets_in(state: Iterable[str], model: nn.Module) -> list[str]:
    """The modules of ``model`` that a saved adapter has something at, by its keys, other than their own tensors and
    trained tokens.

    Raises:
        CheckpointError: there is none.
    """
    modules = modules_of(model)
    found: dict[str, None] = {}
    for key in state:
        parts = key.removeprefix(PREFIX).split(".")
        owners = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        owner = next((name for name in owners if name in modules), None)
        inside = "" if owner is None else parts[owner.count(".") + 1]
        if owner is not None and f"{inside}." != TokenRows.prefix and not hasattr(modules[owner], inside):
            found[owner] = None
    if not found:
        raise CheckpointError(
            "no key of the state dict is of a layer of this model, adapted; its keys: " + ", ".join(state)
        )
    return list(found)
