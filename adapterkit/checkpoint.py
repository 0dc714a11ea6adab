"""An adapter in files: PEFT's layout, read strictly and written whole.

::

    <directory>/adapter_config.json         the config, key for key
    <directory>/adapter_model.safetensors   base_model.model.<module>.<tensor>, the adapter's name left out

Keys of prompt methods have no prefix, and the heads beside them ``base_model.``; a plain model that adapters were
injected into has no prefix at all. All three are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from adapterkit import embeddings, experts
from adapterkit.architectures import model_type
from adapterkit.config.base import PeftConfig
from adapterkit.errors import CheckpointError, nearest
from adapterkit.nn.adapter import Adapter
from adapterkit.nn.layer import BiasAdapter
from adapterkit.nn.parameters import ParameterAdapters
from adapterkit.nn.tokens import TiedTokens
from adapterkit.targets import modules_of
from adapterkit.tuner import Tuner
from adapterkit.tying import input_embedding, untie

PREFIX, HEAD_PREFIX = "base_model.model.", "base_model."

State = dict[str, Tensor]

COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names of a model that it has compiled."""

_COPY = re.compile(r"\.modules_to_save\.[^.]+\.")
"""What PEFT leaves in the keys of biases in modules that are trained whole: its wrapper's name and the adapter's."""

_SHOWN = 20
"""How many differences an error lists."""


class LoadResult(NamedTuple):
    """What did not fit, as `torch.nn.Module.load_state_dict` reports it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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
    """The modules that PEFT puts wrappers around for their parameters, and how many for adapter ``name``."""
    layers = {target: layer for target, layer in tuner.layers.items() if layer.uses("parameter_adapters")}
    held: dict[str, Any] = {target: layer.parameter_adapters._modules.get(name) for target, layer in layers.items()}
    return {target: len(made.adapters) for target, made in held.items() if isinstance(made, ParameterAdapters)}


def _inside(target: str, wrapped: Mapping[str, int]) -> str:
    """A module's name through the wrappers around those that hold it."""
    parts = target.split(".")
    names = (".".join(parts[: end + 1]) for end in range(len(parts) - 1))
    inner = [part + ".base_layer" * wrapped.get(name, 0) for part, name in zip(parts, names, strict=False)]
    return ".".join([*inner, parts[-1]])


def tuner_of(model: nn.Module) -> Tuner:
    """The tuner of a wrapped model, or a new one over a plain model with injected adapters."""
    model = plain(model)
    if isinstance(model, Tuner):
        return model
    held = model._modules.get("base_model")
    if isinstance(held, Tuner):
        return held
    return Tuner(model)


def plain(model: nn.Module) -> nn.Module:
    """The model that was compiled, where ``model`` is what `torch.compile` made of it."""
    compiled = model._modules.get("_orig_mod")  # past __getattr__, which looks into what is wrapped
    return model if compiled is None else compiled


def _tensors(part: nn.Module) -> State:
    if isinstance(part, Adapter):
        return part.tensors()
    return {key: tensor.detach() for key, tensor in part.state_dict(keep_vars=True).items()}


def _load(part: nn.Module, tensors: State) -> None:
    if isinstance(part, Adapter):
        part.load_tensors(tensors)
    else:
        part.load_state_dict(tensors)


def adapter_state(model: nn.Module, name: str) -> State:
    """The tensors of one adapter under the names that files have, without a prefix; detached, not copied."""
    return {stem + key: t for stem, (_, part) in parts_of(model, name).items() for key, t in _tensors(part).items()}


def prefix_of(model: nn.Module, key: str, name: str) -> str:
    """What stands before ``key`` in the file of this model's adapter."""
    if not isinstance(model._modules.get("base_model"), Tuner):
        return ""
    prompts: Any = model._modules.get("prompt_encoder")
    if not prompts or name not in prompts:
        return PREFIX
    return "" if key in prompts[name].tensors() else HEAD_PREFIX


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> State:
    """The tensors of one adapter, as they stand in its file.

    Args:
        model: a `PeftModel`, or a plain model with injected adapters.
        state_dict: taken instead of the model's own values, where it has them (as FSDP and DeepSpeed gather it).
        adapter_name: which adapter.
        unwrap_compiled: accepted for PEFT's sake; a compiled model is always looked into.
        save_embedding_layers: whether to add the input and output embeddings; ``"auto"`` adds them where they were
            resized or targeted.

    Returns:
        tensors by key, on the devices they are on, detached and not copied.
    """
    model = plain(model)
    state = {prefix_of(model, key, adapter_name) + key: t for key, t in adapter_state(model, adapter_name).items()}
    if state_dict is not None:
        state = _taken_from(model, state_dict, adapter_name, state)
    travelling = embeddings.travelling(tuner_of(model), adapter_name, save_embedding_layers)
    return {**state, **{prefix_of(model, key, adapter_name) + key: t for key, t in travelling.items()}}


def _taken_from(model: nn.Module, given: Mapping[str, Tensor], name: str, state: State) -> State:
    """``state`` with the values that ``given``, a whole model's state dict, has for the same parameters."""
    ids = {id(p): key for key, p in [*model.named_parameters(remove_duplicate=False)]}
    taken = {}
    for stem, (_, part) in parts_of(model, name).items():
        for key, tensor in part.state_dict(keep_vars=True).items():
            full = ids.get(id(tensor))
            if full is not None and full in given:
                taken[prefix_of(model, stem + key, name) + stem + key] = given[full]
    return {key: taken.get(key, tensor) for key, tensor in state.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
    *,
    strict: bool = True,
) -> LoadResult:
    """Give an adapter the tensors of a file.

    Args:
        model: a `PeftModel`, or a plain model with injected adapters.
        peft_model_state_dict: tensors by key, with or without PEFT's prefix.
        adapter_name: the adapter that takes them.
        ignore_mismatched_sizes: leave tensors of another shape as they are, and report them as missing.
        low_cpu_mem_usage: accepted for PEFT's sake; tensors on the meta device are always replaced.
        strict: every tensor must be expected and every expected one be there.

    Raises:
        StateError: the adapter is merged.
        CheckpointError: with ``strict``, what does not fit, with the nearest names; nothing is changed then.
    """
    copies = {key: tensor.clone() for key, tensor in peft_model_state_dict.items()}
    return take_state(model, copies, adapter_name, ignore_mismatched_sizes, strict=strict)


def take_state(
    model: nn.Module, state: State, adapter_name: str, ignore_mismatched_sizes: bool = False, *, strict: bool = True
) -> LoadResult:
    """`set_peft_model_state_dict` with tensors that nobody else uses: they may become the adapter's parameters."""
    model = plain(model)
    parts = parts_of(model, adapter_name)
    tuner_of(model).require_unmerged(adapter_name, "giving it other tensors")
    held = {stem: _tensors(part) for stem, (_, part) in parts.items()}
    expected = {stem + key: tensor for stem, own in held.items() for key, tensor in own.items()}
    tuner = tuner_of(model)
    places = embeddings.given(tuner, adapter_name, state, expected)
    base, taken = {target: state[key] for target, key in places.items()}, set(places.values())
    given = _given({key: tensor for key, tensor in state.items() if key not in taken}, expected)
    given = experts.stack(given, parts, tuner.configs.get(adapter_name), model_type(tuner.model))
    for key in _followers(parts):
        given.pop(key, None)
    untied = {stem: parts.pop(stem)[0] for stem in _left_out(tuner, parts, given)}
    expected = {key: t for key, t in expected.items() if not key.startswith(tuple(untied))}
    for key in _shared_biases(model, adapter_name, [k for k in given if k not in expected and k.endswith("bias")]):
        del given[key]
    embeddings.check(tuner, base)
    problems = differences(expected, given, ignore_shapes=ignore_mismatched_sizes)
    if problems and strict:
        problems += _ends(tuner.configs.get(adapter_name), [key for key in given if key not in expected])
        raise CheckpointError(f"adapter {adapter_name!r} does not fit this model:\n" + "\n".join(problems))
    fitting = {k: t for k, t in given.items() if k in expected and t.shape == expected[k].shape}
    for stem, (_, part) in parts.items():
        _load(part, {key: fitting.get(stem + key, old) for key, old in held[stem].items()})
    embeddings.load(tuner, base)
    for target in untied.values():
        untie(tuner, adapter_name, target)
    return LoadResult([k for k in expected if k not in fitting], [k for k in given if k not in expected])


def _given(state: State, expected: Iterable[str]) -> State:
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
    for prefix in (PREFIX, HEAD_PREFIX):
        if key.startswith(prefix) and key not in expected:
            key = key.removeprefix(prefix)
            break
    if ".modules_to_save." in key:
        bare = key.replace(".modules_to_save.", ".")
        named = _COPY.sub(".", key)  # inside a module of several layers the adapter's name is left in
        key = named if named in expected and bare not in expected else bare
    bare = key.replace(".base_layer.", ".")
    return bare if bare in expected and key not in expected else key


def targets_in(state: Iterable[str], model: nn.Module) -> list[str]:
    """The modules of ``model`` that a saved adapter has something at other than their own tensors, by its keys.

    Raises:
        CheckpointError: there is none.
    """
    modules = modules_of(model)
    found: dict[str, None] = {}
    for key in state:
        parts = key.removeprefix(PREFIX).split(".")
        owners = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        owner = next((name for name in owners if name in modules), None)
        if owner is not None and not hasattr(modules[owner], parts[owner.count(".") + 1]):
            found[owner] = None
    if not found:
        raise CheckpointError(
            "no key of the state dict is of a layer of this model, adapted; its keys: " + ", ".join(state)
        )
    return list(found)


def _followers(parts: Mapping[str, tuple[str, nn.Module]]) -> list[str]:
    """The keys under which PEFT writes trained tokens once more, for layers that follow another's."""
    return [f"{stem}trainable_tokens_delta" for stem, (_, part) in parts.items() if isinstance(part, TiedTokens)]


def _left_out(tuner: Tuner, parts: Mapping[str, tuple[str, nn.Module]], given: State) -> list[str]:
    """The stems of copies that the file has nothing of, and whose weight is the input embedding's, which it has."""
    copies = {stem: at for stem, at in parts.items() if not isinstance(at[1], Adapter)}
    absent = [stem for stem in copies if not any(key.startswith(stem) for key in given)]
    leader = input_embedding(tuner.model, tuner.names) if absent and len(absent) < len(copies) else None
    weights = [
        part._parameters.get("weight") for stem, (t, part) in copies.items() if t == leader and stem not in absent
    ]
    return [stem for stem in absent if any(copies[stem][1]._parameters.get("weight") is w for w in weights)]


def _shared_biases(model: nn.Module, name: str, keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that name a bias under a second name: one that adapter ``name`` trains where it is added."""
    tuner = tuner_of(model)
    layers = [layer for layer in tuner.layers.values() if layer.uses("biases") and name in layer.biases]
    trained = {id(layer.base_layer._parameters.get("bias")) for layer in layers}
    own = dict(tuner.model.named_parameters(remove_duplicate=False)) if trained else {}
    return [key for key in keys if key in own and id(own[key]) in trained]


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, ignore_shapes: bool) -> list[str]:
    """What of some tensors does not fit those that are expected, a line each, with the nearest names."""
    missing, unexpected = [k for k in expected if k not in given], [k for k in given if k not in expected]
    problems = [(_missing, key, unexpected) for key in missing] + [(_unexpected, key, missing) for key in unexpected]
    lines = [describe(key, others) for describe, key, others in problems[:_SHOWN]]
    lines += [""] * (len(problems) - len(lines))
    both = [(key, given[key], tensor) for key, tensor in expected.items() if key in given]
    if not ignore_shapes:
        lines += [
            f"  shape: {key} is {tuple(new.shape)}, expected {tuple(own.shape)}"
            for key, new, own in both
            if new.shape != own.shape
        ]
    lines += [
        f"  type: {key} is {new.dtype}, expected {own.dtype}"
        for key, new, own in both
        if new.is_floating_point() != own.is_floating_point()
    ]
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"  ... and {len(lines) - _SHOWN} more"]


def _ends(config: PeftConfig | None, unexpected: list[str]) -> list[str]:
    """What to write in ``modules_to_save`` where PEFT has saved modules whose names only end as one that is stated."""
    stated = (config and config.modules_to_save) or []
    modules = [key.rpartition(".")[0] for key in unexpected]
    lasts = {name.rpartition(".")[2] for name in modules if name.endswith(tuple(stated))}
    if not lasts:
        return []
    return [
        f"  modules_to_save={stated} means modules of these names; PEFT saves all whose names end so. To read such a "
        f"file, write modules_to_save={sorted({*lasts, *stated})} in its config"
    ]


def _missing(key: str, unexpected: list[str]) -> str:
    near = nearest(key, unexpected)
    return f"  missing: {key}{f' (the file has {near})' if near else ''}"


def _unexpected(key: str, missing: list[str]) -> str:
    near = nearest(key, missing)
    return f"  unexpected: {key}{f' (the model has {near})' if near else ''}"
