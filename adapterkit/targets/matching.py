"""Which modules a config means. Every name it states must match at least one module."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import nn

from adapterkit.architectures import ROLES, Roles, roles_of
from adapterkit.config.layer import IndexedLayerConfig, LayerConfig, is_suffix
from adapterkit.errors import CapabilityError, TargetError, did_you_mean
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.view import kind_of

Modules = Mapping[str, nn.Module]
ALL_LINEAR = "all-linear"
_LINEAR = ("linear", "attention")
_INDEX = re.compile(r"\.(\d+)(?=\.)")


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its dotted name, without what adapters put around and beside it: one walk."""
    found: dict[str, nn.Module] = {}
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if name:
            found[name] = module
        if isinstance(module, AdaptedLayer):
            module = module.base_layer
        if isinstance(module, CopiedLayer):
            continue
        prefix = f"{name}." if name else ""
        stack.extend((prefix + child, sub) for child, sub in reversed(module._modules.items()) if sub is not None)
    return found


def match_targets(
    modules: Modules, config: LayerConfig, *, model_type: str | None, kinds: Collection[str], heads: Collection[str]
) -> list[str]:
    """The names of the modules that ``config`` targets, in the order of the model.

    Args:
        modules: every module by name (`modules_of`).
        config: says what is targeted.
        model_type: the family, for roles and default targets.
        kinds: the kinds of layer that the method adapts (`LayerAdapter.kinds`).
        heads: names of the output layers, which ``all-linear`` leaves out.

    Raises:
        TargetError: a stated name, pattern or index matches nothing.
        CapabilityError: a target is a layer that the method cannot adapt.
    """
    if not config.target_modules and getattr(config, "target_parameters", None):
        return []
    method = config.peft_type
    patterns = resolve(config.target_modules, config.roles_in(model_type), modules, model_type, "target_modules")
    if patterns == ALL_LINEAR:
        chosen = all_linear(modules, heads)
        if not chosen:
            raise TargetError("target_modules='all-linear' found no linear layer")
    else:
        chosen = _chosen(modules, patterns, config, model_type)
    chosen = _without(chosen, modules, config.exclude_modules, "exclude_modules")
    chosen = [n for n in chosen if not config.modules_to_save or not _is_one_of(n, config.modules_to_save)]
    if isinstance(config, IndexedLayerConfig) and config.layers_to_transform is not None:
        chosen = _in_layers(chosen, config)
    chosen = config.narrowed(chosen)
    if not chosen:
        raise TargetError(
            f"no module is left to adapt: target_modules={patterns!r}, less what is excluded or saved whole"
        )
    for name in chosen:
        _check_kind(name, modules[name], kinds, method)
        if in_attention(name, modules):
            owner = name.rpartition(".")[0]
            raise CapabilityError(f"{name!r} is never called: {owner!r} reads its weight. Target {owner!r}")
    return chosen


def _chosen(modules: Modules, patterns: str | Sequence[str], config: LayerConfig, model_type: str | None) -> list[str]:
    try:
        return matching(modules, patterns, "target_modules")
    except TargetError as error:
        if config.target_modules is not None:
            raise
        roles = ", ".join(config.roles_in(model_type))
        raise TargetError(
            f"{error}\n  null means the roles {roles}, and not all of them are modules in this {model_type}: a "
            "mixture's experts may be parameters. Name the modules"
        ) from None


def all_linear(modules: Modules, heads: Collection[str]) -> list[str]:
    """The names of the linear layers, less ``heads``, the output layers, and what other adapters train whole."""
    linear = [n for n, m in modules.items() if _kind(m) in _LINEAR and n not in heads]
    return [n for n in linear if not in_attention(n, modules) and not isinstance(modules[n], CopiedLayer)]


def matching(modules: Modules, patterns: str | Sequence[str], field: str) -> list[str]:
    """The modules that a list of name suffixes, or one regular expression, means.

    Raises:
        TargetError: an entry matches nothing; names the nearest real names and how many modules have them.
    """
    if isinstance(patterns, str):
        try:
            compiled = re.compile(patterns)
        except re.error as error:
            raise TargetError(f"{field}={patterns!r} is no regular expression: {error}") from error
        chosen = [name for name in modules if compiled.fullmatch(name)]
        if not chosen:
            raise TargetError(_no_match(modules, field, patterns, regex=True), field, [patterns])
        return chosen
    entries, used = dict.fromkeys(patterns), set()
    has_dots = any("." in entry for entry in entries)
    chosen = []
    for name in modules:
        ends = _ends(name) if has_dots else (name.rpartition(".")[2],)
        hits = [end for end in ends if end in entries]
        if hits:
            chosen.append(name)
            used.update(hits)
    missing = [entry for entry in entries if entry not in used]
    if missing:
        told = "\n".join(_no_match(modules, field, entry, regex=False) for entry in missing)
        raise TargetError(told, field, missing)
    return chosen


def _ends(name: str) -> list[str]:
    """What is left of a dotted name when parts are taken away from its front: ``a.b.c``, ``b.c``, ``c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _no_match(modules: Modules, field: str, entry: str, *, regex: bool) -> str:
    counts: dict[str, int] = {}
    for name, module in modules.items():
        if not module._modules or isinstance(module, AdaptedLayer):
            last = name.rpartition(".")[2]
            counts[last] = counts.get(last, 0) + 1
    names = {name: count for name, count in counts.items() if not name.isdigit()} or counts
    named = any(is_suffix(entry, name) for name in modules)
    hint = (f"; a list names modules: [{entry}]" if named else "") if regex else did_you_mean(_ends(entry)[-1], names)
    what = f"the regular expression {entry!r} matches no whole module name" if regex else f"{entry!r} matches no module"
    listed = ", ".join(f"{name} ({count})" for name, count in list(names.items())[:30])
    return f"{field}: {what}{hint}\n  names in this model: {listed}"


def match_subset(
    modules: Modules, config: LayerConfig, field: str, *, chosen: Sequence[str], model_type: str | None
) -> list[str]:
    """The names among ``chosen`` that one of `LayerConfig.subset_fields` means.

    Raises:
        TargetError: a stated name matches none of the targets, or null is not known for this family.
    """
    stated = getattr(config, field)
    patterns = resolve(stated, config.subset_fields[field], modules, model_type, field)
    if stated is None:
        return [name for name in chosen if any(is_suffix(p, name) for p in patterns)]
    return matching({name: modules[name] for name in chosen}, patterns, field) if patterns else []


def resolve(
    stated: str | list[str] | None, roles: Sequence[str], modules: Modules, model_type: str | None, field: str
) -> str | list[str]:
    """What a field states, with roles and null replaced by the names that this model has for them.

    Raises:
        TargetError: the model has no such role, or nothing is known of its roles.
    """
    if isinstance(stated, str):
        return stated
    if stated is None:
        stated = [f"role:{role}" for role in roles]
    if not any(entry.startswith("role:") for entry in stated):
        return list(dict.fromkeys(stated))
    known = roles_of(model_type, modules)
    if known is None:
        raise TargetError(
            f"{field}: nothing is known of the roles in a model of type {model_type!r}, and its modules have no names "
            "by which to recognise them. Name the modules, or use 'all-linear'"
        )
    names = [_of_role(e.removeprefix("role:"), known, model_type, field) if e[:5] == "role:" else e for e in stated]
    return list(dict.fromkeys(names))


def _of_role(role: str, roles: Roles, model_type: str | None, field: str) -> str:
    if role not in roles:
        hint = "" if role in ROLES else did_you_mean(role, roles)
        raise TargetError(f"{field}: no role {role!r} in {model_type}{hint or '.'} Roles: {', '.join(roles)}")
    return roles[role]


def _is_one_of(name: str, suffixes: Iterable[str]) -> bool:
    return any(is_suffix(s, name) or f".{s}." in f".{name}." for s in suffixes)


def _without(chosen: list[str], modules: Modules, excluded: str | list[str] | None, field: str) -> list[str]:
    if not excluded:
        return chosen
    left_out = set(matching(modules, excluded, field))
    return [name for name in chosen if name not in left_out]


def _in_layers(chosen: list[str], config: IndexedLayerConfig) -> list[str]:
    wanted = [config.layers_to_transform] if isinstance(config.layers_to_transform, int) else config.layers_to_transform
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    index_of = _index_by(patterns) if patterns else _first_index
    indices = {name: index_of(name) for name in chosen}
    there = sorted({i for i in indices.values() if i is not None})
    missing = sorted(set(wanted or ()) - set(there))
    if missing:
        raise TargetError(f"layers_to_transform: no target is in layers {missing}; there are layers {there}")
    return [name for name, index in indices.items() if index in set(wanted or ())]


def _first_index(name: str) -> int | None:
    found = _INDEX.search(f".{name}")
    return int(found.group(1)) if found else None


def _index_by(patterns: Sequence[str]) -> Callable[[str], int | None]:
    compiled = [re.compile(rf"\.{pattern}\.(\d+)\.") for pattern in patterns]

    def index_of(name: str) -> int | None:
        found = next((m for c in compiled if (m := c.search(f".{name}."))), None)
        return int(found.group(1)) if found else None

    return index_of


def in_attention(name: str, modules: Modules) -> bool:
    """Whether a module is part of a `torch.nn.MultiheadAttention`, which reads its weights and does not call it."""
    owner = modules.get(name.rpartition(".")[0])
    return isinstance(owner.base_layer if isinstance(owner, AdaptedLayer) else owner, nn.MultiheadAttention)


def _kind(module: nn.Module) -> str:
    return module.view.kind if isinstance(module, AdaptedLayer) else kind_of(module)


def _check_kind(name: str, module: nn.Module, kinds: Collection[str], method: str) -> None:
    if isinstance(module, CopiedLayer):
        raise CapabilityError(f"{name!r} is trained whole, by modules_to_save of {list(module.modules_to_save)}")
    kind = _kind(module)
    if "any" in kinds or kind in kinds or (kind == "attention" and "linear" in kinds):
        return
    layer = module.base_layer if isinstance(module, AdaptedLayer) else module
    raise CapabilityError(
        f"{method} cannot adapt {name!r}, a {type(layer).__name__} (kind {kind}); it adapts {', '.join(sorted(kinds))}"
    )


def suffixes(chosen: Sequence[str], modules: Modules) -> str | list[str]:
    """The shortest list of name suffixes that means just ``chosen``: what files and servers read.

    Where no list does, because a name is the end of another module's, a regular expression.
    """
    wanted = set(chosen)
    lasts = {name: name.rpartition(".")[2] for name in chosen}
    alike = set(lasts.values())
    others = [name for name in modules if name not in wanted and name.rpartition(".")[2] in alike]
    ends = {end for other in others for end in _ends(other)}
    if not wanted.isdisjoint(ends):
        return "|".join(re.escape(name) for name in sorted(wanted))
    return sorted({name if last in ends or last.isdigit() else last for name, last in lasts.items()})
