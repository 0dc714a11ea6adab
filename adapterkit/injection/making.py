"""What a new adapter will consist of: which modules it adapts, its parts, and the config as it is honoured.

Nothing of the model is changed here: whatever is wrong with a config is found before the first layer is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import nn

from adapterkit.architectures import model_type
from adapterkit.config.base import PeftConfig
from adapterkit.config.layer import LayerConfig, pattern_value
from adapterkit.errors import BrokenPluginError, CapabilityError, TargetError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.module import META, modules_in, on_meta
from adapterkit.nn.selection import Selection
from adapterkit.nn.view import Kind, LayerView
from adapterkit.registry import declared_as, tasks
from adapterkit.targets.biases import Parts, with_biases
from adapterkit.targets.experts import with_experts
from adapterkit.targets.matching import Modules, match_subset, match_targets, matching, suffixes
from adapterkit.targets.parameters import Spot, attention_spots, by_slot, check_spots, parameter_spots, read_spots
from adapterkit.targets.tokens import make_token_rows
from adapterkit.targets.tying import Tied

_KINDS = frozenset({"any", *get_args(Kind)})
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Maker:
    """Makes the parts of adapters for one model."""

    model: nn.Module
    names: Modules
    """Every module of the model by name, adapted layers as leaves."""

    selection: Selection
    """Where the adapters will find the forward's other inputs."""

    def parts(self, name: str, config: PeftConfig, *, half: bool, meta: bool) -> tuple[PeftConfig, Parts]:
        """The config as it is honoured, and what is put beside layers: slot of `AdaptedLayer` -> target -> adapter."""
        parts: Parts = {}
        _check_kind_of(config)
        tied = Tied(self.model, self.names, config)
        config = tied.settled(config)
        if isinstance(config, LayerConfig):
            config, chosen = self.targets(config, tied)
            spots = self._spots(config, chosen)
            config = self._honoured(config, tied.named(chosen))
            parts = self._make(name, config, spots, half=half, meta=meta)
            parts["adapters"] = tied.following(parts["adapters"])
        parts = with_biases(self.names, config, parts, self._view, saved=self.modules_to_save(config))
        tokens = make_token_rows(self.model, self.names, config)
        parts["tokens"] = {target: _placed(rows, rows.layer, half=half) for target, rows in tokens.items()}
        return config, parts

    def targets(self, config: LayerConfig, tied: Tied) -> tuple[LayerConfig, list[str]]:
        """The config with its experts' parameters in the place of their layers, and the modules that are targeted."""
        family = model_type(self.model)
        config = with_experts(config, self.names, family, partial(self._heads, config))
        kinds, heads = _kinds(config), self._heads(config)
        chosen = match_targets(self.names, config, model_type=family, kinds=kinds, heads=heads)
        return config, tied.targets(chosen, config)

    def _spots(self, config: LayerConfig, chosen: Sequence[str]) -> list[Spot]:
        """The places for adapters: the chosen modules, or what they compute with, and parameters."""
        read = [*attention_spots(self.names, chosen), *read_spots(self.names, chosen)]
        names = {spot.name for spot in read}
        called = [Spot(target, target, self._view(target)) for target in chosen if target not in names]
        spots = [*called, *read, *parameter_spots(self.names, config)]
        check_spots(self.names, spots, config.adapter_class(), config.peft_type)
        _check_patterns(config, [spot.name for spot in spots])
        return spots

    def _honoured(self, config: LayerConfig, chosen: Sequence[str]) -> LayerConfig:
        """The config with every field that names targets narrowed to what it matched."""
        config = config.settled(chosen)
        names = {field: suffixes(found, self.names) for field, found in self._subsets(config, chosen).items()}
        for field, found in names.items():
            if isinstance(found, str):
                raise TargetError(f"{field}: in this model no list of names means just {found}")
        targets = suffixes(chosen, self.names)
        if isinstance(targets, str):  # the whole answer: a regular expression and layer numbers exclude each other
            numbers = {"layers_to_transform", "layers_pattern"} & type(config).model_fields.keys()
            return config.model_copy(update={**names, **dict.fromkeys(numbers), "target_modules": targets})
        stated = {*targets, *(name for found in names.values() for name in found)}
        return config.model_copy(update={**names, "target_modules": sorted(stated)})

    def _subsets(self, config: LayerConfig, chosen: Sequence[str]) -> dict[str, list[str]]:
        family = model_type(self.model)
        return {f: match_subset(self.names, config, f, chosen=chosen, model_type=family) for f in config.subset_fields}

    def _make(self, name: str, config: LayerConfig, spots: Sequence[Spot], *, half: bool, meta: bool) -> Parts:
        """The adapters for every spot, made but not yet put in place: slot of `AdaptedLayer` -> target -> adapter."""
        implementation = partial(_made, config, config.adapter_class())
        if meta or all(spot.view.device == META for spot in spots):
            with on_meta():
                made = [implementation(spot) for spot in spots]
        else:
            seed, made = torch.initial_seed(), []
            with torch.random.fork_rng(devices=[]), _cpu():
                for spot in spots:
                    _start_stream(f"{seed}/{name}/{spot.seed}")
                    made.append(implementation(spot))
        _check_parameters(config, spots, made)
        return by_slot(
            spots, [_placed(adapter, spot.view, half=half) for adapter, spot in zip(made, spots, strict=True)]
        )

    def _view(self, target: str) -> LayerView:
        module = self.names[target]
        if isinstance(module, AdaptedLayer):
            return module.view
        view = LayerView(module)
        view.inputs = self.selection.inputs
        return view

    def _heads(self, config: LayerConfig) -> set[str]:
        """The output layers, which all-linear leaves alone: the language model's head or the task's, and modules to
        save."""
        get_output = getattr(self.model, "get_output_embeddings", None)
        output = get_output and get_output()
        heads = set() if output is None else {n for n, m in self.names.items() if m is output}
        if get_output is not None and output is None and config.task_type is not None:
            heads.update(self.names.keys() & set(tasks[config.task_type.lower()].wrapper_class().unadapted_heads))
        if config.modules_to_save:
            heads.update(matching(self.names, config.modules_to_save, "modules_to_save"))
        return heads

    def modules_to_save(self, config: PeftConfig) -> list[str]:
        """The modules that a config has trained and saved whole; of one inside another, the outer one.

        Raises:
            TargetError: a name matches nothing.
            CapabilityError: a module is adapted by another adapter.
        """
        if not config.modules_to_save:
            return []
        chosen = matching(self.names, config.modules_to_save, "modules_to_save")
        adapted = [n for n in chosen if isinstance(self.names[n], AdaptedLayer)]
        if adapted:
            raise CapabilityError(f"modules_to_save: {adapted} are adapted by another adapter already")
        inside = tuple(f"{n}." for n in chosen)
        return [n for n in chosen if not n.startswith(inside)]


def _check_kind_of(config: PeftConfig) -> None:
    if not isinstance(config, LayerConfig) and not config.is_prompt_learning:
        raise BrokenPluginError(
            f"{declared_as(type(config))}: its config is no LayerConfig and no PromptConfig: nothing would be adapted"
        )


def _kinds(config: LayerConfig) -> frozenset[str]:
    """The kinds of layer that a method adapts, once it is known to say what it does to them."""
    adapter: type[LayerAdapter] = config.adapter_class()
    unknown = sorted(set(adapter.kinds) - _KINDS)
    if unknown:
        raise BrokenPluginError(
            f"{declared_as(type(config))}: {config.adapter} has kinds={adapter.kinds!r}, where a set of "
            f"{', '.join(sorted(_KINDS))} is needed"
        )
    if adapter.adapt_input is LayerAdapter.adapt_input and adapter.adapt_output is LayerAdapter.adapt_output:
        raise BrokenPluginError(
            f"{declared_as(type(config))}: {config.adapter} defines neither adapt_input nor adapt_output: it would "
            "change nothing"
        )
    return adapter.kinds


def _made(config: LayerConfig, implementation: type[LayerAdapter], spot: Spot) -> LayerAdapter:
    """One new adapter. What goes wrong in a method's own code is told the method and the layer."""
    try:
        adapter = implementation(config.at(spot.name), spot.view)
    except Exception as error:
        error.add_note(f"{declared_as(type(config))}: making {config.adapter} at {spot.name!r}, {spot.view.layer}")
        raise
    if adapter.layer is not spot.view:
        raise BrokenPluginError(
            f"{declared_as(type(config))}: {config.adapter} has something of its own in the attribute 'layer', where "
            "LayerAdapter keeps the layer: call it something else"
        )
    return adapter


def with_heads(config: PeftConfig, modules: Modules, heads: Sequence[str]) -> PeftConfig:
    """The config with a task's output layer among the modules to save: the one of ``heads`` that is there."""
    there = {name.rpartition(".")[2] for name in modules}
    absent = {head for head in heads if head not in there}
    names = dict.fromkeys([*(config.modules_to_save or ()), *heads])
    return config.model_copy(update={"modules_to_save": [name for name in names if name not in absent] or None})


def _placed(adapter: LayerAdapter, view: LayerView, *, half: bool) -> LayerAdapter:
    """The adapter on its layer's device, in float32 unless the base is in float64 or ``half`` is wanted."""
    dtype = view.dtype
    if not half and dtype != torch.float64:
        dtype = torch.float32
    for module in modules_in(adapter):
        for tensor in (tensor for tensor in module._parameters.values() if tensor is not None):
            if tensor.is_meta:
                return _awaiting(adapter if tensor.dtype == dtype else adapter.to(dtype), view.device)
            if tensor.dtype != dtype or tensor.device != view.device:
                return adapter.to(device=view.device, dtype=dtype)
    return adapter


def _awaiting(adapter: LayerAdapter, device: torch.device) -> LayerAdapter:
    """An adapter that stays on the meta device, and on this one what it was given of the weight."""
    for module in modules_in(adapter):
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    return adapter


def _cpu() -> AbstractContextManager[object]:
    """In the block, new tensors are on the CPU, whose numbers are drawn from one stream wherever the base is."""
    return nullcontext() if torch.get_default_device() == _CPU else _CPU


def _start_stream(key: str) -> None:
    """Draw from a stream that depends on ``key`` only: what else is made, and in which order, moves nothing."""
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest))


@contextmanager
def seeded(key: str) -> Iterator[None]:
    """In the block, random numbers come from a stream of their own."""
    with torch.random.fork_rng(devices=[]), _cpu():
        _start_stream(key)
        yield


def _check_parameters(config: LayerConfig, spots: Sequence[Spot], made: Sequence[LayerAdapter]) -> None:
    """One of the adapters has parameters; those of other layers may read them."""
    inside = (module._parameters for adapter in made for module in modules_in(adapter))
    if made and all(parameter is None for held in inside for parameter in held.values()):
        raise BrokenPluginError(
            f"{declared_as(type(config))}: its adapter {config.adapter} has no nn.Parameter at any of its "
            f"{len(made)} targets, such as {spots[0].name!r}: nothing of it would be trained or saved"
        )


def _check_patterns(config: LayerConfig, chosen: Sequence[str]) -> None:
    for field in config.pattern_fields:
        for pattern in getattr(config, field) or ():
            if not any(pattern_value({pattern: True}, name) for name in chosen):
                told = f"{field}: {pattern!r} matches none of the {len(chosen)} targets, such as {chosen[0]!r}"
                raise TargetError(told, field, [pattern])
