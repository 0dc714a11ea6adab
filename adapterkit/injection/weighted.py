"""A new adapter that is a weighted combination of others, at every layer, bias and head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from adapterkit.config.base import PeftConfig
from adapterkit.config.layer import LayerConfig
from adapterkit.errors import CapabilityError, StateError, of_choices
from adapterkit.given import check_name, check_number, numbers_of
from adapterkit.injection.lookup import pattern_name
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.combination import KINDS, MAJORITIES, SVD_KINDS, Combination
from adapterkit.nn.parameters import ParameterAdapters, ParameterView


def check_adapters(tuner: Tuner, adapters: Sequence[str]) -> None:
    """
    Raises:
        StateError: there is none, one is unknown, or the config of one is.
    """
    if not adapters:
        raise StateError(
            f"adapters={list(adapters)}: name at least one. Adapters: {', '.join(tuner.configs) or 'none'}"
        )
    tuner.require_config(adapters, "combining")


def add_weighted(tuner: Tuner, adapters: Sequence[str], weights: Sequence[float], name: str, how: Combination) -> None:
    """Add adapter ``name``, frozen and not active. One adapter at weight 1 is given back exactly.

    Raises:
        StateError: an adapter is unknown, or ``name`` is taken.
        CapabilityError: the method has no such combination, or not of these settings, or of these adapters.
    """
    weights = numbers_of(weights, "weights")
    _check(tuner, adapters, weights, name, how)
    same = len(adapters) == 1 and weights[0] == 1 and how.svd_rank is None and how.density in (None, 1)
    config = tuner.configs[adapters[0]] if same else _config(tuner, adapters, how)
    tuner.add(name, config.model_copy(update={"inference_mode": True}), low_cpu_mem_usage=not same)
    given = dict(zip(adapters, weights, strict=True))
    try:
        with torch.no_grad():
            for layer in tuner.layers.values():
                for slot in layer.slots:
                    _fill(slot, name, given, None if same else how)
            for copied in tuner.copies.values():
                _fill(copied.modules_to_save, name, given, None if same else how)
    except Exception:
        tuner.delete(name)
        raise


def _check(tuner: Tuner, adapters: Sequence[str], weights: Sequence[float], name: str, how: Combination) -> None:
    check_adapters(tuner, adapters)
    check_name(name)
    if len(adapters) != len(weights) or len(set(adapters)) < len(adapters):
        raise StateError(f"{len(weights)} weights for the adapters {list(adapters)}: each needs one, and stands once")
    if name in tuner.configs:
        raise StateError(f"an adapter named {name!r} is there already")
    _check_types(how)
    _check_settings(how)
    kinds = {tuner.configs[n].peft_type for n in adapters}
    if len(kinds) > 1 or not isinstance(tuner.configs[adapters[0]], LayerConfig):
        raise CapabilityError(f"only adapters of one layer method can be combined, not {', '.join(sorted(kinds))}")


def _check_types(how: Combination) -> None:
    check_name(how.kind, "combination_type")
    check_name(how.majority_sign_method, "majority_sign_method")
    for field in ("density", "svd_rank", "svd_clamp"):
        if getattr(how, field) is not None:
            check_number(getattr(how, field), field)


def _check_settings(how: Combination) -> None:
    choices = (*KINDS, *SVD_KINDS)
    if how.kind not in choices:
        raise CapabilityError(f"no combination {how.kind!r}{of_choices(how.kind, choices)}")
    if how.density is not None and not 0 < how.density <= 1:
        raise CapabilityError(
            f"density is the share of the numbers that is kept, above 0 and at most 1, not {how.density}"
        )
    if how.svd_rank is not None and (how.svd_rank < 1 or not isinstance(how.svd_rank, int)):
        raise CapabilityError(f"svd_rank is the rank of the combination, an integer from 1, not {how.svd_rank}")
    if how.svd_clamp is not None and not 0 <= how.svd_clamp <= 1:
        raise CapabilityError(f"svd_clamp is a quantile, from 0 to 1, not {how.svd_clamp}")
    if how.majority_sign_method not in MAJORITIES:
        named = of_choices(how.majority_sign_method, MAJORITIES)
        raise CapabilityError(f"no majority_sign_method {how.majority_sign_method!r}{named}")


def _config(tuner: Tuner, adapters: Sequence[str], how: Combination) -> PeftConfig:
    configs: list[Any] = [tuner.configs[n] for n in adapters]
    there: dict[str, list[LayerAdapter]] = {}
    targets: dict[str, None] = {}
    for name in adapters:
        found = _methods_own(tuner, name)
        for (place, _), adapter in found.items():
            there.setdefault(place, []).append(adapter)
        targets.update({place: None for place, is_module in found if is_module})
    kind: type[LayerAdapter] = configs[0].adapter_class()
    config: PeftConfig = kind.combined_config(configs, there, how)
    changes: dict[str, Any] = {"target_modules": list(targets)}
    for field in ("modules_to_save", "target_parameters"):
        if field in type(config).model_fields:
            changes[field] = list(dict.fromkeys(n for c in configs for n in getattr(c, field) or ())) or None
    return config.model_copy(update=changes)


def _methods_own(tuner: Tuner, name: str) -> dict[tuple[str, bool], LayerAdapter]:
    """The adapters of the method itself, by the name that patterns go by and whether it is a module's; one for each
    name, the last, since all of a module's have one rank."""
    found: dict[tuple[str, bool], LayerAdapter] = {}
    for target, part in tuner.parts(name):
        if isinstance(part, LayerAdapter) and part.is_method:
            view = part.layer
            is_module = not isinstance(view, ParameterView) or not view.part or "." in view.name
            found[pattern_name(target, part), is_module] = part
    return found


def _fill(slot: nn.ModuleDict, name: str, given: dict[str, float], how: Combination | None) -> None:
    """Make ``slot[name]`` the combination of what is in ``slot``; ``how`` is None where there is one, at weight 1."""
    if name not in slot:
        return
    new, parts = slot[name], [(slot[n], weight) for n, weight in given.items() if n in slot]
    if how is None:
        new.load_state_dict(parts[0][0].state_dict())
    elif isinstance(new, ParameterAdapters):
        for own in new.adapters:
            _combine(own, [(a, w) for part, w in parts for a in part.adapters if _is_like(a, own)], how)  # type: ignore
    else:
        _combine(new, parts, how)


def _is_like(adapter: nn.Module, own: nn.Module) -> bool:
    """Whether two adapters of one module are of the same parameter, and of one kind."""
    return type(adapter) is type(own) and adapter.layer.name == own.layer.name  # type: ignore[union-attr]


def _combine(new: nn.Module, parts: Sequence[tuple[Any, float]], how: Combination) -> None:
    if isinstance(new, LayerAdapter) and new.is_method:
        new.combine([part for part, _ in parts], [weight for _, weight in parts], how)
    else:
        _move(new, parts)


def _move(new: nn.Module, parts: Iterable[tuple[nn.Module, float]]) -> None:
    """From the frozen values that ``new`` starts with, by the weighted sum of the others' moves."""
    own = {key: tensor for key, tensor in new.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
    start = {key: tensor.clone() for key, tensor in own.items()}
    for part, weight in parts:
        others = part.state_dict(keep_vars=True)
        if {k: t.shape for k, t in others.items() if k in own} != {k: t.shape for k, t in own.items()}:
            raise CapabilityError(f"the adapters train different rows or parts of a {type(part).__name__}")
        for key, tensor in own.items():
            tensor += weight * (others[key] - start[key])
