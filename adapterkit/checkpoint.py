"""An adapter in files: PEFT's layout, read strictly and written whole.

::

    <directory>/adapter_config.json         the config, key for key
    <directory>/adapter_model.safetensors   base_model.model.<module>.<tensor>, the adapter's name left out

Keys of prompt methods have no prefix, and the heads beside them ``base_model.``; a plain model that adapters were
injected into has no prefix at all. All three are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterkit.errors import CheckpointError, nearest
from adapterkit.files import fetch, replacing
from adapterkit.nn.adapter import Adapter
from adapterkit.nn.layer import BiasAdapter
from adapterkit.tuner import Tuner

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"
PREFIX, HEAD_PREFIX = "base_model.model.", "base_model."

State = dict[str, Tensor]


class LoadResult(NamedTuple):
    """What did not fit, as `torch.nn.Module.load_state_dict` reports it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def parts_of(model: nn.Module, name: str) -> dict[str, tuple[str, nn.Module]]:
    """Everything that adapter ``name`` consists of: key stem -> (layer name, module). Stems have no prefix."""
    tuner = tuner_of(model)
    tuner.require(name)
    found: dict[str, tuple[str, nn.Module]] = {}
    for target, part in tuner.parts(name):
        stem = f"{target}."
        if isinstance(part, BiasAdapter) and name in tuner.layers[target].adapters:
            stem += "base_layer."
        found[stem] = (target, part)
    prompts = getattr(model, "prompt_encoder", {})
    if name in prompts:
        found[""] = ("", prompts[name])
    return found


def tuner_of(model: nn.Module) -> Tuner:
    """The tuner of a wrapped model, or a new one over a plain model with injected adapters."""
    if isinstance(model, Tuner):
        return model
    held = model._modules.get("base_model")
    if isinstance(held, Tuner):
        return held
    tuner = Tuner(model)
    for layer in tuner.layers.values():
        tuner.configs.update(dict.fromkeys([*layer.adapters, *layer.biases], None))  # type: ignore[arg-type]
    for copied in tuner.copies.values():
        tuner.configs.update(dict.fromkeys(copied.modules_to_save, None))  # type: ignore[arg-type]
    return tuner


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
    prompts = getattr(model, "prompt_encoder", {})
    if name not in prompts:
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
        unwrap_compiled: look inside a compiled model.
        save_embedding_layers: whether to add the input and output embeddings; ``"auto"`` adds them where they were
            resized or targeted.

    Returns:
        tensors by key, on the devices they are on, detached and not copied.
    """
    model = getattr(model, "_orig_mod", model) if unwrap_compiled else model
    state = {prefix_of(model, key, adapter_name) + key: t for key, t in adapter_state(model, adapter_name).items()}
    if state_dict is not None:
        state = _taken_from(model, state_dict, adapter_name, state)
    return {**state, **_embeddings(model, adapter_name, save_embedding_layers)}


def _taken_from(model: nn.Module, given: Mapping[str, Tensor], name: str, state: State) -> State:
    """``state`` with the values that ``given``, a whole model's state dict, has for the same parameters."""
    ids = {id(p): key for key, p in [*model.named_parameters(remove_duplicate=False)]}
    taken = {}
    for stem, (_, part) in parts_of(model, name).items():
        for key, tensor in part.state_dict(keep_vars=True).items():
            full = ids.get(id(tensor))
            if full in given:
                taken[prefix_of(model, stem + key, name) + stem + key] = given[full]
    return {key: taken.get(key, tensor) for key, tensor in state.items()}


def _embeddings(model: nn.Module, name: str, wanted: bool | str) -> State:
    """The embeddings of the base, where they have to travel with the adapter."""
    tuner = tuner_of(model)
    if wanted is False or (wanted == "auto" and not _was_resized(tuner)):
        return {}
    state: State = {}
    for get in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(tuner.model, get, lambda: None)()
        for target, candidate in tuner.names.items():
            if candidate is not module or target in tuner.copies:
                continue
            suffix = "base_layer.weight" if target in tuner.layers else "weight"
            state[f"{PREFIX}{target}.{suffix}"] = module.weight.detach()
    return state


def _was_resized(tuner: Tuner) -> bool:
    """Whether the vocabulary is no longer the one the base was loaded with."""
    original = getattr(tuner, "original_vocab_size", None)
    return original is not None and original != getattr(getattr(tuner.model, "config", None), "vocab_size", original)


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
        CheckpointError: with ``strict``, what does not fit, with the nearest names; nothing is changed then.
    """
    parts = parts_of(model, adapter_name)
    expected = {stem + key: t for stem, (_, part) in parts.items() for key, t in _tensors(part).items()}
    given = {_plain(k, expected): t for k, t in peft_model_state_dict.items() if ".original_module." not in k}
    embeddings = {key: given.pop(key) for key in _embedding_keys(model) if key in given and key not in expected}
    problems = _differences(expected, given, ignore_shapes=ignore_mismatched_sizes)
    if problems and strict:
        raise CheckpointError(f"adapter {adapter_name!r} does not fit this model:\n" + "\n".join(problems))
    fitting = {k: t for k, t in given.items() if k in expected and t.shape == expected[k].shape}
    for stem, (_, part) in parts.items():
        own = _tensors(part)
        _load(part, {key: fitting.get(stem + key, old) for key, old in own.items()})
    for key, tensor in embeddings.items():
        _set_base(model, key, tensor)
    return LoadResult([k for k in expected if k not in fitting], [k for k in given if k not in expected])


def _plain(key: str, expected: Iterable[str]) -> str:
    """A file's key without its prefix. (PEFT repeats biases of whole-saved modules under the wrapper's own names.)"""
    key = key.replace(".modules_to_save.", ".")
    for prefix in (PREFIX, HEAD_PREFIX):
        if key.startswith(prefix) and key not in expected:
            return key.removeprefix(prefix)
    return key


def _embedding_keys(model: nn.Module) -> list[str]:
    return [key.removeprefix(PREFIX) for key in _embeddings(model, "", True)]


def _set_base(model: nn.Module, key: str, tensor: Tensor) -> None:
    parameter = tuner_of(model).model.get_parameter(key)
    if parameter.shape != tensor.shape:
        raise CheckpointError(
            f"{key}: the file's embedding is {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}; "
            "call resize_token_embeddings first"
        )
    parameter.data.copy_(tensor)


def _differences(expected: State, given: State, *, ignore_shapes: bool) -> list[str]:
    lines = []
    for key in (k for k in expected if k not in given):
        near = nearest(key, given)
        lines.append(f"  missing: {key}{f' (the file has {near})' if near else ''}")
    for key in (k for k in given if k not in expected):
        near = nearest(key, expected)
        lines.append(f"  unexpected: {key}{f' (the model has {near})' if near else ''}")
    if not ignore_shapes:
        for key in (k for k in expected if k in given and given[k].shape != expected[k].shape):
            lines.append(f"  shape: {key} is {tuple(given[key].shape)}, expected {tuple(expected[key].shape)}")
    return lines if len(lines) <= 20 else [*lines[:20], f"  ... and {len(lines) - 20} more"]


def write_weights(directory: Path, state: Mapping[str, Tensor], *, safe: bool = True) -> Path:
    """Write an adapter's tensors; the file appears whole or not at all.

    Args:
        directory: where to.
        state: tensors by key.
        safe: safetensors; otherwise a pickled dict, for readers that know nothing else.
    """
    path = directory / (WEIGHTS_NAME if safe else PICKLED_NAME)
    with replacing(path) as temporary:
        if safe:
            save_file(_unshared(state), temporary, metadata={"format": "pt"})
        else:
            torch.save(dict(state), temporary)
    return path


def _unshared(state: Mapping[str, Tensor]) -> State:
    """Contiguous tensors, none sharing memory with another, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for key, tensor in state.items():
        pointer = tensor.untyped_storage().data_ptr()
        shared = pointer in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        seen.add(pointer)
        result[key] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return result


def load_peft_weights(model_id: str | Path, device: str | None = None, **hub: Any) -> State:
    """The tensors of a saved adapter, by key.

    Args:
        model_id: directory, or repository on the Hub.
        device: where to; None is the CPU.
        hub: ``subfolder``, ``revision``, ``token``, ... as for `adapterkit.files.fetch`.

    Raises:
        CheckpointError: no weights, or a file that cannot be read.
    """
    path = _weights_file(model_id, **hub)
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=device or "cpu")
        return torch.load(path, map_location=device or "cpu", weights_only=True)  # type: ignore[no-any-return]
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # pickle's own errors: weights_only refuses whatever is not a tensor
        raise CheckpointError(f"{path} is not a file of tensors: {error}") from error


def _weights_file(model_id: str | Path, **hub: Any) -> Path:
    try:
        path = fetch(model_id, WEIGHTS_NAME, **hub)
        if path.is_file():
            return path
    except CheckpointError:
        if Path(model_id).is_dir():
            raise
    path = fetch(model_id, PICKLED_NAME, **hub)
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has neither {WEIGHTS_NAME} nor {PICKLED_NAME}")
    return path
