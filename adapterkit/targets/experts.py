"""A mixture's experts, which were layers in transformers 4 and are slices of stacked parameters since.

Configs and files that name the layers mean the parameters, for the families in `adapterkit.architectures.FUSED`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from adapterkit.architectures import FUSED, Fused
from adapterkit.config.layer import LayerConfig, is_suffix
from adapterkit.errors import TargetError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.parameters import ParameterView
from adapterkit.registry import resolve as resolve_path
from adapterkit.targets.matching import ALL_LINEAR, Modules, all_linear, matching, resolve
from adapterkit.targets.parameters import FIELD, base_of, named_parameters

_SHOWN = 6
"""How many names a warning lists."""


def with_experts(
    config: LayerConfig, modules: Modules, family: str | None, heads: Callable[[], Collection[str]]
) -> LayerConfig:
    """The config with parameters in the place of the layers that it targets and that are parts of parameters now.

    Parameters that hold several layers have as many times the rank and the alpha, so that the scale stays.

    Args:
        config: of the new adapter.
        modules: every module by name.
        family: the model's type.
        heads: gives the names of the output layers, which ``all-linear`` leaves out.

    Raises:
        TargetError: of the layers in one parameter, only some are targeted.
    """
    fused = FUSED.get(family or "")
    if fused is None or not config.target_modules or FIELD not in type(config).model_fields:
        return _looked_over(config, modules)
    there = {name: _holding(modules, name) for name in fused.parameters}
    stated = resolve(config.target_modules, config.default_roles, modules, family, "target_modules")
    if not any(there.values()) or not _is_pattern(stated):
        return config
    named = _named(stated, modules, heads)
    excluded = _excluded(config, modules)
    wanted = {}
    for name, at in there.items():
        places = [p for p in _wanted(stated, named, fused, name, at) if p.rpartition(".")[0] not in excluded]
        if places:
            wanted[name] = places
    layers = {layer for name in wanted for layer in fused.parameters[name]}
    adapted = {place.rpartition(".")[0] for at in wanted.values() for place in at}
    _warn_of_others([n for n in named if n.rpartition(".")[2] in layers and n not in adapted], modules)
    before = getattr(config, FIELD) or ()
    kept = named if isinstance(stated, str) else [n for n in stated if n not in before]  # where PEFT repeats them
    parameters = [p for name, at in wanted.items() for p in ([name] if at == there[name] else at)]
    changes = {
        "target_modules": [n for n in kept if n.rpartition(".")[2] not in layers],
        FIELD: list(dict.fromkeys([*before, *sorted(parameters)])),
        **_patterns(config, {name: len(fused.parameters[name]) for name in wanted}),
    }
    return config.model_copy(update=changes) if wanted or kept != stated else config


def _is_pattern(stated: str | list[str]) -> bool:
    try:
        return not isinstance(stated, str) or bool(re.compile(stated))
    except re.error:  # refused where modules are matched
        return False


def _excluded(config: LayerConfig, modules: Modules) -> Collection[str]:
    return matching(modules, config.exclude_modules, "exclude_modules") if config.exclude_modules else ()


def _holding(modules: Modules, suffix: str) -> list[str]:
    return [name for name in named_parameters(modules) if is_suffix(suffix, name)]


def _named(stated: str | list[str], modules: Modules, heads: Callable[[], Collection[str]]) -> list[str]:
    """The modules that are meant as they are, whether or not any is."""
    if stated == ALL_LINEAR:
        return all_linear(modules, heads())
    if isinstance(stated, str):
        return [name for name in modules if re.fullmatch(stated, name)]
    return [name for name in modules if any(is_suffix(entry, name) for entry in stated)]


def _wanted(stated: str | list[str], named: Collection[str], fused: Fused, parameter: str, at: list[str]) -> list[str]:
    """Those of the places of a parameter that hold layers which are targeted.

    Raises:
        TargetError: others in the same place are not.
    """
    if stated == ALL_LINEAR:
        return at
    found = {layer: _places(stated, named, layer, parameter, at) for layer in fused.parameters[parameter]}
    wanted = [place for place in at if any(place in places for places in found.values())]
    absent = sorted(layer for layer, places in found.items() if set(wanted) - set(places))
    if absent:
        present = ", ".join(sorted(found.keys() - absent)) or "some of them"
        raise TargetError(
            f"target_modules: {present} cannot be adapted without {', '.join(absent)}: this model keeps them in one "
            f"parameter, {wanted[0]!r}. Name them all, or the parameter in {FIELD}"
        )
    return wanted


def _places(stated: str | list[str], named: Collection[str], layer: str, parameter: str, at: list[str]) -> list[str]:
    """The places of a parameter at which ``layer`` is targeted: all of them where it is named as something else is, or
    as it was called before."""
    once = {place: place.removesuffix(parameter) + layer for place in at}
    if isinstance(stated, str):
        places = [place for place, name in once.items() if re.fullmatch(stated, name)]
        return places or (at if any(n.rpartition(".")[2] == layer for n in named) else [])
    entries = [entry for entry in stated if is_suffix(layer, entry)]
    places = [place for place, name in once.items() if any(is_suffix(entry, name) for entry in entries)]
    return places or (at if entries else [])


def _patterns(config: LayerConfig, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        key: {
            **(getattr(config, key) or {}),
            **{rf".*\.{re.escape(name)}": getattr(config, field) * n for name, n in counts.items() if n > 1},
        }
        for key, field in config.pattern_fields.items()
    }


def _warn_of_others(names: list[str], modules: Modules) -> None:
    others = [name for name in names if isinstance(base_of(modules[name]), nn.Linear)]
    if others:
        warnings.warn(
            f"target_modules: {', '.join(sorted({n.rpartition('.')[2] for n in others}))} mean the experts in this "
            f"family, as they do for PEFT: {_listed(others)} are not adapted",
            stacklevel=2,
        )


def _looked_over(config: LayerConfig, modules: Modules) -> LayerConfig:
    """``config``, with a warning if ``all-linear`` leaves out experts: parameters are no layers."""
    if config.target_modules == ALL_LINEAR:
        stated, excluded = getattr(config, FIELD, None) or (), _excluded(config, modules)
        unsaid = [n for n in _experts(modules) if n.rpartition(".")[0] not in excluded]
        left_out = [n for n in unsaid if not any(is_suffix(entry, n) for entry in stated)]
        if left_out:
            ends = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in left_out})
            advice = f"; to adapt them, too: {FIELD}={ends}" if FIELD in type(config).model_fields else ""
            warnings.warn(
                f"target_modules='all-linear' leaves out parameters that hold experts: {_listed(left_out)}{advice}",
                stacklevel=2,
            )
    return config


def _experts(modules: Modules) -> Iterator[str]:
    """The names of parameters that hold the weights of several experts."""
    for target, module in modules.items():
        layer = base_of(module)
        if "expert" in f"{target.rpartition('.')[2]} {type(layer).__name__}".lower():
            for name, parameter in layer._parameters.items():
                if parameter is not None and parameter.ndim == 3 and min(parameter.shape) > 1:
                    yield f"{target}.{name}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def stack(
    state: dict[str, Tensor], parts: Mapping[str, tuple[str, nn.Module]], config: Any, family: str | None
) -> dict[str, Tensor]:
    """A file's tensors with those of each expert's layers in the form of the parameter that holds them.

    Args:
        state: tensors by key, without a prefix.
        parts: an adapter's, by key stem, each with the name of its module.
        config: the adapter's.
        family: the model's type.
    """
    fused, path = FUSED.get(family or ""), getattr(config, "stacking", None)
    if fused is None or path is None:
        return state
    for before, now in fused.renamed.items() if not any(b in stem for b in fused.renamed for stem in parts) else ():
        state = {key.replace(before, now): tensor for key, tensor in state.items()}
    join = resolve_path(path)
    for stem, (target, part) in parts.items():
        view = part.layer if isinstance(part, LayerAdapter) else None
        if isinstance(view, ParameterView) and view.kind == "stack" and view.name in fused.parameters:
            stems = [[f"{target}.{i}.{n}." for i in range(view.weight_shape[0])] for n in fused.parameters[view.name]]
            keys = list(part.tensors()) if isinstance(part, LayerAdapter) else []
            if all(s + key in state for row in stems for s in row for key in keys):
                joined = join([[{key: state.pop(s + key) for key in keys} for s in row] for row in stems])
                state.update({stem + key: tensor for key, tensor in joined.items()})
    return state
