"""The tensors of an adapter, as they stand in its file: taken from a model, and given to one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from adapterkit.architectures import model_type
from adapterkit.checkpoint import embeddings
from adapterkit.checkpoint.fit import differences, names_that_end
from adapterkit.checkpoint.keys import State, given_by, parts_of, prefix_of
from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.given import check_mapping, misfit
from adapterkit.injection.lookup import plain, tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.adapter import Adapter, LayerAdapter
from adapterkit.nn.tokens import TiedTokens
from adapterkit.targets import experts
from adapterkit.targets.tying import input_embedding, untie


class LoadResult(NamedTuple):
    """What did not fit, as `torch.nn.Module.load_state_dict` reports it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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
    if not isinstance(save_embedding_layers, bool) and save_embedding_layers != "auto":
        raise ConfigError(f"save_embedding_layers={save_embedding_layers!r}: choices are True, False and 'auto'")
    if state_dict is not None:
        check_mapping(state_dict, "state_dict", "a mapping of tensors by key")
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
    check_mapping(peft_model_state_dict, "peft_model_state_dict", "a mapping of tensors by key")
    for key, tensor in peft_model_state_dict.items():
        if not isinstance(tensor, Tensor):
            raise misfit(f"peft_model_state_dict[{key!r}]", tensor, "a tensor")
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
    given = given_by({key: tensor for key, tensor in state.items() if key not in taken}, expected)
    given = experts.stack(given, parts, tuner.configs.get(adapter_name), model_type(tuner.model))
    for key in _followers(parts):
        given.pop(key, None)
    there = {stem for stem, own in held.items() if any(stem + key in given for key in own)}
    untied = {stem: parts.pop(stem)[0] for stem in _left_out(tuner, parts, there)}
    expected = {stem + key: tensor for stem in parts for key, tensor in held[stem].items()}
    for key in _shared_biases(model, adapter_name, [k for k in given if k not in expected and k.endswith("bias")]):
        del given[key]
    embeddings.check(tuner, base)
    problems = differences(expected, given, ignore_shapes=ignore_mismatched_sizes)
    if problems and strict:
        problems += names_that_end(tuner.configs.get(adapter_name), [key for key in given if key not in expected])
        raise CheckpointError(f"adapter {adapter_name!r} does not fit this model:\n" + "\n".join(problems))
    fitting = {k: t for k, t in given.items() if k in expected and t.shape == expected[k].shape}
    for stem, (_, part) in parts.items():
        _load(part, {key: fitting.get(stem + key, old) for key, old in held[stem].items()})
    embeddings.load(tuner, base)
    for target in untied.values():
        untie(tuner, adapter_name, target)
    return LoadResult([k for k in expected if k not in fitting], [k for k in given if k not in expected])


def _followers(parts: Mapping[str, tuple[str, nn.Module]]) -> list[str]:
    """The keys under which PEFT writes trained tokens once more, for layers that follow another's."""
    return [f"{stem}trainable_tokens_delta" for stem, (_, part) in parts.items() if isinstance(part, TiedTokens)]


def _left_out(tuner: Tuner, parts: Mapping[str, tuple[str, nn.Module]], there: Collection[str]) -> list[str]:
    """The stems of what follows the input embedding's part, where the file has that, and nothing of what follows."""
    leaders = {stem: _leader(part) for stem, (_, part) in parts.items() if stem not in there}
    absent = {stem: leader for stem, leader in leaders.items() if leader is not None}
    if not absent:
        return []
    target = input_embedding(tuner.model, tuner.names)
    leading = [part for stem, (at, part) in parts.items() if at == target and stem in there]
    led_by = [leader for part in leading for leader in (part, part._parameters.get("weight"))]
    return [stem for stem, leader in absent.items() if any(leader is other for other in led_by)]


def _leader(part: nn.Module) -> Any:
    """What a part may follow: another adapter, or of a copy the weight, which may be another's, too."""
    return part.leader if isinstance(part, LayerAdapter) else part._parameters.get("weight")


def _shared_biases(model: nn.Module, name: str, keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that name a bias under a second name: one that adapter ``name`` trains where it is added."""
    tuner = tuner_of(model)
    layers = [layer for layer in tuner.layers.values() if layer.uses("biases") and name in layer.biases]
    trained = {id(layer.base_layer._parameters.get("bias")) for layer in layers}
    own = dict(tuner.model.named_parameters(remove_duplicate=False)) if trained else {}
    return [key for key in keys if key in own and id(own[key]) in trained]
