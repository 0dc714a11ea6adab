"""Whether a saved adapter is one, as far as its config and the header of its tensors tell without the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adapterkit.config.base import Form, PeftConfig
from adapterkit.config.layer import LayerConfig, is_suffix, pattern_value
from adapterkit.errors import AdapterkitError, first_line
from adapterkit.ondisk.header import Entry
from adapterkit.ondisk.names import plain
from adapterkit.ondisk.reading import AdapterFiles

ANY = "..."
EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "base_layer"})
"""Modules whose weight a file may have, because it was resized or targeted."""


class Parts(NamedTuple):
    """A file's tensors: those of the method by module and name, and the others by name; none has a prefix."""

    own: Mapping[str, Mapping[str, Entry]]
    others: Mapping[str, Entry]


def parts_of(config: PeftConfig, tensors: Mapping[str, Entry]) -> Parts:
    """Which tensors are the method's own, as `PeftConfig.saved_forms` names them."""
    names = sorted({name for form in config.saved_forms() for name in form}, key=len, reverse=True)
    own: dict[str, dict[str, Entry]] = {}
    others = {}
    for key, entry in tensors.items():
        bare = plain(key)
        name = next((name for name in names if is_suffix(name, bare)), None)
        if name is None:
            others[bare] = entry
        else:
            own.setdefault(bare.removesuffix(name).removesuffix("."), {})[name] = entry
    return Parts(own, others)


def problems(files: AdapterFiles) -> list[str]:
    """What is wrong with a saved adapter, a line each; nothing where it is sound."""
    found = []
    for read in (lambda: files.config, lambda: files.header):
        try:
            read()
        except AdapterkitError as error:
            found.append(str(error))
    if found:
        return found
    config, tensors = files.config, files.header.tensors
    if not tensors:
        return [f"{files.weights} has no tensors"]
    lines = [f"{key} is empty: {entry.shape}" for key, entry in tensors.items() if not entry.numel]
    lines += [f"{key} is of {entry.dtype}" for key, entry in tensors.items() if not entry.is_floating]
    parts = parts_of(config, tensors)
    lines += [line for module, own in parts.own.items() for line in _misshapen(config, module, own)]
    if config.saved_forms():
        lines += _unexpected(config, parts)
    return [*lines, *_unnamed(config, parts)]


def notes(files: AdapterFiles) -> list[str]:
    """What is worth knowing of a sound adapter."""
    config, tensors = files.config, files.header.tensors
    parts = parts_of(config, tensors)
    types = sorted({entry.dtype for entry in tensors.values()})
    found = [f"tensors are of several types: {', '.join(types)}"] if len(types) > 1 else []
    for field in config.pattern_fields if isinstance(config, LayerConfig) else ():
        patterns = getattr(config, field) or {}
        idle = [key for key, value in patterns.items() if not any(_matches(key, value, m) for m in parts.own)]
        found += [f"{field}: {pattern!r} matches no module of the file" for pattern in idle]
    if not config.saved_forms():
        found.append(
            f"{config.peft_type} does not say which tensors it has: only their values and types were looked at"
        )
    return found


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """The tensors with values that are no numbers, a line each."""
    counts = {key: int((~tensor.isfinite()).sum()) for key, tensor in tensors.items() if tensor.is_floating_point()}
    return [f"{key} has {count} values that are NaN or infinite" for key, count in counts.items() if count]


def _matches(pattern: str, value: Any, module: str) -> bool:
    return pattern_value({pattern: value}, module) is not None


def _misshapen(config: PeftConfig, module: str, own: Mapping[str, Entry]) -> Iterator[str]:
    """What of the tensors at one place fits no form, told by the form that is nearest."""
    try:
        forms = config.at(module).saved_forms()
    except AdapterkitError as error:
        yield first_line(error)
        return
    found = min((list(_differences(form, module, own)) for form in forms), key=len)
    yield from found


def _differences(form: Form, module: str, own: Mapping[str, Entry]) -> Iterator[str]:
    stem = f"{module}." if module else ""
    yield from (f"{stem}{name} is missing" for name in form if name not in own)
    yield from (f"{stem}{name} is not expected beside {', '.join(form)}" for name in own if name not in form)
    sizes: dict[str, int] = {}
    for name, wanted in form.items():
        given = own[name].shape if name in own else None
        if given is not None and not _fits(given, wanted, sizes):
            shown = ", ".join(str(sizes.get(str(size), size)) for size in wanted)
            yield f"{stem}{name} is {given}, expected ({shown})"


def _fits(given: tuple[int, ...], wanted: Sequence[int | str], sizes: dict[str, int]) -> bool:
    """Whether a tensor has these sizes; words that are met for the first time are given one."""
    fixed = [size for size in wanted if size != ANY]
    if len(given) < len(fixed) or (len(given) > len(fixed) and ANY not in wanted):
        return False
    pairs = zip(given, fixed, strict=False)
    return all(size == (want if isinstance(want, int) else sizes.setdefault(want, size)) for size, want in pairs)


def _unexpected(config: PeftConfig, parts: Parts) -> Iterator[str]:
    """Tensors that are neither the method's nor those of anything that the config says is saved beside it."""
    whole = config.modules_to_save or []
    biases = getattr(config, "bias", "none") != "none"
    for name in parts.others:
        module, _, last = name.rpartition(".")
        saved = any(f".{each}." in f".{name}" for each in whole)
        expected = saved or (biases and last == "bias") or module.rpartition(".")[2] in EMBEDDINGS
        if not (expected or config.trains_tokens):
            hint = ": an adapter's name is left in it" if ".default." in name else ""
            yield f"{name} is neither a tensor of {config.peft_type} nor of modules_to_save={whole}{hint}"


def _unnamed(config: PeftConfig, parts: Parts) -> Iterator[str]:
    """Names of the config without a tensor, and modules with tensors that no name means."""
    whole = config.modules_to_save or []
    if whole and not any(f".{each}." in f".{name}" for each in whole for name in parts.others):
        yield f"modules_to_save={config.modules_to_save}: the file has no tensor of them"
    targets = getattr(config, "target_modules", None)
    if not parts.own or not isinstance(targets, list) or config.is_adaption_prompt:
        return
    for target in targets:
        if not any(is_suffix(target, module) for module in parts.own):
            yield f"target_modules: no tensor is of {target!r}"
    if not getattr(config, "target_parameters", None):
        for module in parts.own:
            if not any(is_suffix(target, module) for target in targets):
                yield f"{module} has tensors, and target_modules={targets} does not mean it"
