"""Which biases of the base a config trains, by its field ``bias``, and where the trained copies are put.

A bias is a parameter of that name, as it is for PEFT: the ``in_proj_bias`` of `torch.nn.MultiheadAttention` is none,
and stays frozen; its ``out_proj.bias`` is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from adapterkit.config.base import PeftConfig
from adapterkit.errors import CapabilityError
from adapterkit.nn.layer import AdaptedLayer, BiasAdapter
from adapterkit.nn.parameters import ParameterAdapters, ParameterView
from adapterkit.nn.view import LayerView, calls_otherwise, kind_of
from adapterkit.targets.matching import Modules, in_attention
from adapterkit.targets.parameters import base_of, is_read

Parts = dict[str, dict[str, nn.Module]]
"""Slot of `AdaptedLayer` -> name of the layer -> what an adapter has there."""


def with_biases(
    modules: Modules, config: PeftConfig, parts: Parts, view_of: Callable[[str], LayerView], *, saved: Iterable[str]
) -> Parts:
    """The parts of a new adapter, and the biases that it trains beside them.

    Args:
        modules: every module by name.
        config: ``bias`` is none, all, or that of the targets only.
        parts: the adapter's own.
        view_of: the view of a module, by name.
        saved: names of the modules that are trained whole, biases included.

    Raises:
        CapabilityError: a bias belongs to a module whose parameters are adapted, and that has no weight beside it; or
            to a layer that is never called.
    """
    mode = getattr(config, "bias", "none")
    if mode == "none":
        return parts
    called, changed = parts.get("adapters", {}), parts.get("parameter_adapters", {})
    whole = set(saved)
    biases: dict[str, nn.Module] = {}
    changes: dict[str, nn.Module] = dict(changed)
    for name in modules if mode == "all" else [*called, *changed, *_layers_in(changed)]:
        if _within(name, whole) or in_attention(name, modules):
            continue
        made = _inside(name, modules[name], changed)
        if made is not None:
            changes[name] = ParameterAdapters([*getattr(changed.get(name), "adapters", ()), made])
        elif _has_bias(modules[name]):
            if is_read(name, modules):
                raise CapabilityError(f"bias={mode!r}: {name!r} is never called: the block around it reads its bias")
            biases[name] = BiasAdapter(view_of(name))
    if not biases and changes == changed and not config.inference_mode:
        where = "the model has no bias" if mode == "all" else "no layer that is adapted has a bias"
        warnings.warn(f"bias={mode!r} trains nothing: {where} of its own", UserWarning, stacklevel=2)
    return {**parts, "biases": biases, "parameter_adapters": changes}


def _layers_in(changed: Mapping[str, Any]) -> list[str]:
    """The layers inside modules that are called with other weights for them."""
    return [
        f"{owner}.{parameter.rpartition('.')[0]}"
        for owner, made in changed.items()
        for parameter in made.parameter_names
        if "." in parameter
    ]


def _within(name: str, whole: set[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in whole)


def _inside(name: str, module: nn.Module, changed: Mapping[str, nn.Module]) -> BiasAdapter | None:
    """The bias of a module that is called with changed parameters, or reads its part's; None where it has none such."""
    base, depth = base_of(module), len(getattr(changed.get(name), "adapters", ()))
    if isinstance(base, nn.MultiheadAttention):
        if base.out_proj.bias is None:
            return None
        made = BiasAdapter(ParameterView(base, "out_proj.weight", "out_proj.bias"))
        made.prefix = "base_layer.out_proj.base_layer." if depth else "out_proj."
        return made
    held = isinstance(module, AdaptedLayer) and module.uses("parameter_adapters")
    if _is_its_own(base):
        return BiasAdapter(ParameterView(base, "bias", "bias", kind="other"))
    if not (depth or held) or base._parameters.get("bias") is None:
        return None
    if base._parameters.get("weight") is None:
        raise CapabilityError(f"bias: {name!r} has adapted parameters, and a bias without a weight that it goes with")
    kind = kind_of(base) if calls_otherwise(base) else None
    made = BiasAdapter(ParameterView(base, "weight", "bias", kind=kind))
    made.prefix = "base_layer." * depth
    return made


def _is_its_own(module: nn.Module) -> bool:
    """Whether a module has a bias beside modules in it, none of which has the same: it may add it before they are
    called, as a normalisation does that calls its activation."""
    bias, inside = module._parameters.get("bias"), module._modules
    return bias is not None and bool(inside) and sum(own is bias for own in _biases(module)) == 1


def _biases(module: nn.Module) -> Iterator[Any]:
    return (inner._parameters.get("bias") for inner in module.modules())


def _has_bias(module: nn.Module) -> bool:
    """Whether a layer adds a bias of its own; a module around others may hold the one that one of them adds."""
    if isinstance(module, AdaptedLayer):
        return module.view.bias is not None
    return module._parameters.get("bias") is not None and not module._modules
