"""Which adapters change parameters that no layer of their own applies: ``target_parameters``, attention modules, and
layers whose weights others read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from torch import nn

from adapterkit.architectures import MORE_THAN_LINEAR, read_in
from adapterkit.config.layer import LayerConfig, is_suffix
from adapterkit.errors import CapabilityError, TargetError, did_you_mean
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.parameters import ParameterAdapters, ParameterView
from adapterkit.nn.storage import is_quantised
from adapterkit.nn.view import LayerView, calls_otherwise, kind_of
from adapterkit.targets.matching import Modules

FIELD = "target_parameters"


class Spot(NamedTuple):
    """A place for one adapter: a module that is called, or a parameter of one."""

    target: str
    """Name of the module."""

    name: str
    """Name that patterns of ranks go by."""

    view: LayerView
    prefix: str = ""
    """What stands before the adapter's tensors in files: PEFT nests one wrapper for each parameter of a module."""

    @property
    def seed(self) -> str:
        """Name of the stream that the adapter is drawn from."""
        return f"{self.target}.{self.view.name}" if isinstance(self.view, ParameterView) else self.target


def parameter_spots(modules: Modules, config: LayerConfig) -> list[Spot]:
    """The parameters that ``target_parameters`` means, by name or name suffix.

    Raises:
        TargetError: an entry matches nothing.
        CapabilityError: a parameter is that of a module that is trained whole.
    """
    stated = getattr(config, FIELD, None)
    if not stated:
        return []
    named = named_parameters(modules)
    found = {name: at for name, at in named.items() if any(is_suffix(entry, name) for entry in stated)}
    missing = [entry for entry in dict.fromkeys(stated) if not any(is_suffix(entry, name) for name in found)]
    if missing:
        raise TargetError("\n".join(_no_match(entry, named) for entry in missing), FIELD, missing)
    by_target: dict[str, list[str]] = {}
    for target, leaf in found.values():
        by_target.setdefault(target, []).append(leaf)
    return [spot for target, leaves in by_target.items() for spot in _nested(target, modules[target], leaves)]


def named_parameters(modules: Modules) -> dict[str, tuple[str, str]]:
    """The modules' own parameters by name: the module's name, and the parameter's in it."""
    return {f"{target}.{leaf}": (target, leaf) for target, m in modules.items() for leaf in _parameters_of(m)}


def _parameters_of(module: nn.Module) -> list[str]:
    return [name for name, parameter in base_of(module)._parameters.items() if parameter is not None]


def base_of(module: nn.Module) -> nn.Module:
    """The frozen module itself, whatever stands around it."""
    if isinstance(module, CopiedLayer):
        return module.original_module
    return module.base_layer if isinstance(module, AdaptedLayer) else module


def _nested(target: str, module: nn.Module, leaves: Sequence[str]) -> list[Spot]:
    if isinstance(module, CopiedLayer):
        raise CapabilityError(f"{FIELD}: {target!r} is trained whole, by modules_to_save")
    inner, base = len(leaves) - 1, base_of(module)
    biased = {"weight": "bias"} if base._parameters.get("bias") is not None else {}
    return [
        Spot(target, f"{target}.{leaf}", ParameterView(base, leaf, biased.get(leaf)), "base_layer." * (inner - depth))
        for depth, leaf in enumerate(leaves)
    ]


def _no_match(entry: str, named: Collection[str]) -> str:
    last = dict.fromkeys(".".join(name.rsplit(".", 2)[-2:]) for name in named)
    near = did_you_mean(entry, last)
    return f"{FIELD}: {entry!r} matches no parameter{near}\n  parameters in this model: {', '.join(list(last)[:30])}"


def attention_spots(modules: Modules, chosen: Sequence[str]) -> list[Spot]:
    """The two projections of every attention module among ``chosen``.

    Raises:
        CapabilityError: queries, keys and values have weights of their own.
    """
    spots = []
    for target in chosen:
        attention = base_of(modules[target])
        if not isinstance(attention, nn.MultiheadAttention):
            continue
        if attention.in_proj_weight is None:
            raise CapabilityError(f"{target!r} has several input projections (kdim or vdim differs from embed_dim)")
        has_bias = attention.in_proj_bias is not None
        inner = ParameterView(attention, "in_proj_weight", "in_proj_bias" if has_bias else None)
        outer = ParameterView(attention, "out_proj.weight", "out_proj.bias" if has_bias else None)
        spots += [Spot(target, target, inner, ""), Spot(target, target, outer, "base_layer.out_proj.")]
    return spots


def read_spots(modules: Modules, chosen: Sequence[str]) -> list[Spot]:
    """The weights of those layers among ``chosen`` that do not multiply by them when they are called: the block around
    a layer reads its weight, and is called with another one, or the layer itself is, as it does more.

    Raises:
        CapabilityError: a layer whose weight is read is a convolution.
    """
    spots = []
    for target in chosen:
        layer = base_of(modules[target])
        bias = None if layer._parameters.get("bias") is None else "bias"
        if is_read(target, modules):
            spots.append(_read_spot(target, modules, bias))
        elif type(layer).__name__ in MORE_THAN_LINEAR or calls_otherwise(layer):
            spots.append(Spot(target, target, ParameterView(layer, "weight", bias, kind=kind_of(layer))))
    return spots


def _read_spot(target: str, modules: Modules, bias: str | None) -> Spot:
    place, _, leaf = target.rpartition(".")
    if kind_of(base_of(modules[target])) != "linear":
        raise CapabilityError(f"{target!r} is never called: {place!r} reads its weight")
    view = ParameterView(base_of(modules[place]), f"{leaf}.weight", bias and f"{leaf}.{bias}")
    return Spot(place, target, view, f"{leaf}.")


def is_read(name: str, modules: Modules) -> bool:
    """Whether the block around a layer reads its weight where it would call it. Quantised layers are called."""
    owner, _, leaf = name.rpartition(".")
    block = modules.get(owner)
    return block is not None and leaf in read_in(type(base_of(block))) and not is_quantised(base_of(modules[name]))


def check_spots(modules: Modules, spots: Sequence[Spot], implementation: type[LayerAdapter], method: str) -> None:
    """
    Raises:
        CapabilityError: a module is to be adapted both through its call and through its parameters, or the method
            cannot state its change on a parameter of that kind.
    """
    called = {spot.target for spot in spots if spot.view.called}
    for spot in spots:
        module: Any = modules[spot.target]
        adapted = isinstance(module, AdaptedLayer) and any(module.slots)
        changed = adapted and module.uses("parameter_adapters")
        if changed if spot.view.called else spot.target in called or (adapted and not changed):
            raise CapabilityError(f"{spot.target!r} cannot be adapted both as a module and through its parameters")
        if not spot.view.called and not (implementation.mergeable and spot.view.kind in implementation.kinds):
            what = f"{spot.seed!r}, a parameter of shape {spot.view.weight_shape}"
            raise CapabilityError(f"{method} cannot adapt {what}: it states no change of such a weight")


def by_slot(spots: Sequence[Spot], adapters: Sequence[LayerAdapter]) -> dict[str, dict[str, nn.Module]]:
    """The adapters for the spots, by the slot of `AdaptedLayer` that they belong in, and by target."""
    called: dict[str, nn.Module] = {}
    changes: dict[str, list[LayerAdapter]] = {}
    for spot, adapter in zip(spots, adapters, strict=True):
        if spot.view.called:
            called[spot.target] = adapter
        else:
            adapter.prefix = spot.prefix
            changes.setdefault(spot.target, []).append(adapter)
    return {"adapters": called, "parameter_adapters": {t: ParameterAdapters(made) for t, made in changes.items()}}
