"""An adapter of any mergeable method as a LoRA adapter: the leading singular directions of what it changes.

``W' - W ~ B A`` is the nearest change of that rank (Eckart and Young, 1936, https://doi.org/10.1007/BF02288367); how
much of it is missing is reported for each layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from adapterkit.checkpoint.files import write_adapter
from adapterkit.checkpoint.keys import prefix_of
from adapterkit.checkpoint.state import adapter_state
from adapterkit.errors import CapabilityError, ConfigError, StateError
from adapterkit.given import DIRECTORY, check_path
from adapterkit.injection.lookup import tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.layer import BiasAdapter
from adapterkit.nn.merging import merged_parameters
from adapterkit.nn.parameters import ParameterView
from adapterkit.nn.tokens import TokenRows
from adapterkit.targets.matching import suffixes

_KEPT = (
    "modules_to_save", "trainable_token_indices", "target_parameters",
    "task_type", "base_model_name_or_path", "revision", "auto_mapping",
)  # fmt: skip


@final
class Conversion(tuple[LoraConfig, dict[str, Tensor]]):
    """Config and tensors, as ``config, state = convert_to_lora(...)`` takes them; ``errors`` beside them."""

    errors: dict[str, float]
    """By layer: the part of the change that is missing, ``||D - B A|| / ||D||`` in the Frobenius norm."""

    def __new__(cls, config: LoraConfig, state: dict[str, Tensor], errors: dict[str, float]) -> Conversion:
        made = super().__new__(cls, (config, state))
        made.errors = errors
        return made


class Found(NamedTuple):
    """One layer's change, decomposed."""

    rank: int
    tensors: dict[str, Tensor]
    bias: Tensor | None
    error: float


@torch.no_grad()
def convert_to_lora(
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> Conversion:
    """The LoRA adapter that is nearest to an adapter of any mergeable method. The model does not change.

    Biases, whole modules and token rows that are trained beside the adapter are taken over as they are. A change of
    biases, such as (IA)³ makes, becomes the second factor's bias.

    Args:
        model: an adapted model, or a plain one with injected adapters.
        rank: the rank at every layer; or, between 0 and 1, the share of the change's energy (the sum of its squared
            singular values) that each layer's rank must reach.
        adapter_name: which adapter.
        progressbar: show the layers going by.
        compile_kwargs: accepted for PEFT's sake; nothing is compiled.

    Raises:
        ConfigError: ``rank`` is neither, or more than a layer has.
        CapabilityError: an adapter's change is no change of a weight.
        StateError: an adapter is merged.
    """
    if rank is True or (not (isinstance(rank, int) and rank > 0) and not (isinstance(rank, float) and 0 < rank <= 1)):
        raise ConfigError(f"rank={rank!r}: a positive integer, or a share of the energy above 0.0 and up to 1.0")
    tuner = tuner_of(model)
    tuner.require(adapter_name)
    if tuner.merged_adapters:
        raise StateError(f"adapters {list(tuner.merged_adapters)} are merged: unmerge first")
    adapters = _adapters(tuner, adapter_name)
    if not adapters:
        raise CapabilityError(f"adapter {adapter_name!r} is at no layer: there is nothing to convert")
    ranks = _ranks(adapters, rank)
    shown = tqdm(adapters.items(), desc="converting", disable=not progressbar)
    found = {stem: _decomposed(stem, adapter, ranks.get(_pattern(stem, adapter), rank)) for stem, adapter in shown}
    config = _config(tuner, adapter_name, {_pattern(stem, adapters[stem]): one for stem, one in found.items()})
    state = {stem + key: tensor for stem, one in found.items() for key, tensor in one.tensors.items()}
    if config.lora_bias:
        state |= {f"{stem}lora_B.bias": _bias(one) for stem, one in found.items()}
    own = adapter_state(model, adapter_name)
    state |= {key: tensor for key, tensor in own.items() if not _belongs(key, adapters)}
    state = {prefix_of(model, key, adapter_name) + key: tensor for key, tensor in state.items()}
    return Conversion(config, state, {stem.removesuffix("."): one.error for stem, one in found.items()})


def save_as_lora(
    path: str | Path,
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Write what `convert_to_lora` gives, as an adapter that PEFT and the serving engines read.

    Returns:
        by layer, the part of the change that is missing.
    """
    check_path(path, "path", DIRECTORY)
    converted = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    config, state = converted
    write_adapter(Path(path), state, config.to_json())
    return converted.errors


def _adapters(tuner: Tuner, name: str) -> dict[str, LayerAdapter]:
    """The method's own adapters, by what stands before their tensors in a file."""
    beside = (BiasAdapter, TokenRows)
    parts = [(target, part) for target, part in tuner.parts(name) if isinstance(part, LayerAdapter)]
    return {f"{target}.{part.prefix}": part for target, part in parts if not isinstance(part, beside)}


def _belongs(key: str, adapters: Mapping[str, LayerAdapter]) -> bool:
    """Whether a tensor is one of these adapters' own."""
    return any(key.startswith(stem) and key.removeprefix(stem) in part.tensors() for stem, part in adapters.items())


def _pattern(stem: str, adapter: LayerAdapter) -> str:
    """The name that patterns of ranks go by."""
    target, view = stem.removesuffix(adapter.prefix).removesuffix("."), adapter.layer
    return f"{target}.{view.part}" if isinstance(view, ParameterView) and view.part else target


def _ranks(adapters: Mapping[str, LayerAdapter], rank: int | float) -> dict[str, int]:
    """The ranks of places that share a name, as the projections of one attention do: the greatest that any needs."""
    names = {stem: _pattern(stem, adapter) for stem, adapter in adapters.items()}
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    ranks: dict[str, int] = {}
    for stem, name in names.items():
        if name in shared:
            ranks[name] = max(ranks.get(name, 1), _decomposed(stem, adapters[stem], rank).rank)
    return ranks


def _bias(found: Found) -> Tensor:
    zeros = torch.zeros_like(found.tensors["lora_B.weight"].flatten(1)[:, 0])
    return zeros if found.bias is None else found.bias.to(zeros)


def _decomposed(stem: str, adapter: LayerAdapter, rank: int | float) -> Found:
    view = adapter.layer
    if view.kind not in ("linear", "embedding", "conv", "stack") or (view.kind == "conv" and view.layer.groups > 1):
        raise CapabilityError(f"{stem}: the change of a {type(view.layer).__name__} cannot be a LoRA adapter's")
    weight, bias = merged_parameters([adapter], view)
    change = weight - view.weight.to(weight)
    moved = None if bias is None or view.bias is None else bias - view.bias.to(bias)
    if moved is not None and view.kind == "embedding":
        raise CapabilityError(f"{stem}: an embedding's adapter has no bias")
    matrices = _as_matrices(change, view.kind)  # (stack, out, in)
    a, b, kept, error = _factors(stem, matrices, rank)
    tensors = _in_file(a, b, change, view.kind)
    tensors = {key: tensor.to(next(adapter.parameters()).dtype).contiguous() for key, tensor in tensors.items()}
    return Found(kept, tensors, moved if moved is not None and moved.any() else None, error)


def _as_matrices(change: Tensor, kind: str) -> Tensor:
    if kind == "stack":
        return change
    return (change.T if kind == "embedding" else change.flatten(1))[None]


def _factors(stem: str, matrices: Tensor, rank: int | float) -> tuple[Tensor, Tensor, int, float]:
    """``A (stack, r, in)``, ``B (stack, out, r)``, ``r``, and the part of the matrices that is missing."""
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    energy = s.double().square()
    total = float(energy.sum())
    kept = rank if isinstance(rank, int) else _reaching(energy, rank)
    if kept > s.shape[-1]:
        where = stem.removesuffix(".")
        raise ConfigError(f"rank={rank}: the change at {where} has no more than {s.shape[-1]} directions")
    missing = float(energy[:, kept:].sum())
    return vh[:, :kept], u[:, :, :kept] * s[:, None, :kept], kept, (missing / total) ** 0.5 if total else 0.0


def _reaching(energy: Tensor, share: float) -> int:
    """The smallest rank at which every matrix keeps its share of the energy."""
    reached = energy.cumsum(-1)
    enough = reached >= share * reached[:, -1:]
    return int(enough.int().argmax(-1).max()) + 1


def _in_file(a: Tensor, b: Tensor, change: Tensor, kind: str) -> dict[str, Tensor]:
    """The factors under the names, and in the shapes, that files have."""
    if kind == "embedding":
        return {"lora_embedding_A": a[0], "lora_embedding_B": b[0]}
    if kind == "conv":
        kernel = change.shape[2:]
        first = a[0].reshape(a.shape[1], change.shape[1], *kernel)
        return {"lora_A.weight": first, "lora_B.weight": b[0].reshape(*b[0].shape, *[1] * len(kernel))}
    if kind == "stack":  # A's rows are grouped by expert, B's columns by rank
        return {"lora_A.weight": a.flatten(0, 1), "lora_B.weight": b.permute(1, 2, 0).flatten(1)}
    return {"lora_A.weight": a[0], "lora_B.weight": b[0]}


def _config(tuner: Tuner, name: str, found: Mapping[str, Found]) -> LoraConfig:
    """The config of the converted adapter; ``found`` is by the names that patterns go by."""
    source: Any = tuner.configs.get(name)
    usual = Counter(one.rank for one in found.values()).most_common(1)[0][0]
    others = {pattern: one.rank for pattern, one in found.items() if one.rank != usual}
    targets = [pattern for pattern in found if pattern in tuner.names]
    fields = {field: getattr(source, field) for field in _KEPT if getattr(source, field, None)}
    bias: Any = getattr(source, "bias", "none")
    return LoraConfig(
        r=usual, lora_alpha=usual, rank_pattern=others, alpha_pattern=dict(others), inference_mode=True,
        target_modules=suffixes(targets, tuner.names), bias=bias if bias in ("none", "all") else "lora_only",
        lora_bias=any(one.bias is not None for one in found.values()), **fields,
    )  # fmt: skip
