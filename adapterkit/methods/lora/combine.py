"""Several LoRA adapters of one layer made into one: ``s B A = sum of w_i s_i B_i A_i``, exactly or approximately.

The result has scale 1. What a variant adds is combined beside the factors: the second factor's bias is summed; a
magnitude moves from the frozen weight's by the weighted sum of the moves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapterkit.errors import CapabilityError, CheckpointError
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.nn.combination import Combination, factorised, refactorised

Factors = tuple[Tensor, Tensor]


def combined_config(configs: Sequence[LoraConfig], layers: Mapping[str, Sequence[Any]], how: Combination) -> LoraConfig:
    """The config of the combination, with the rank that each layer needs.

    Args:
        configs: those of the adapters that are combined.
        layers: the adapters there are, by layer.
        how: how they are combined.

    Raises:
        CapabilityError: the combination works on the factors, and their ranks differ.
    """
    if len({tuple(config.alora_invocation_tokens or ()) for config in configs}) > 1:
        raise CapabilityError("adapters with different alora_invocation_tokens cannot be combined")
    largest = max(rank for config in configs for rank in (config.r, *config.rank_pattern.values()))
    ranks = {target: _rank(target, adapters, how, largest) for target, adapters in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {target: rank for target, rank in ranks.items() if rank != usual}
    changes = {
        "r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": dict(others),
        "use_rslora": False, "use_qalora": False, "use_bdlora": None, "init_lora_weights": True,
        "lora_dropout": configs[0].lora_dropout,
        "use_dora": any(c.use_dora for c in configs), "lora_bias": any(c.lora_bias for c in configs),
    }  # fmt: skip
    return configs[0].model_copy(update=changes)


def _rank(target: str, adapters: Sequence[Any], how: Combination, largest: int) -> int:
    """The rank at one layer; where it is factorised anew, the ``largest`` that a config has anywhere."""
    factors = [adapter.whole_factors() for adapter in adapters]
    ranks: list[int] = [len(a) for a, _ in factors]
    if how.kind == "cat":
        return sum(ranks)
    if how.factorises:
        a, b = factors[0]
        sizes: list[int] = [a[0].numel(), len(b)]
        return min(how.svd_rank or max(largest, *ranks), *sizes)
    if len(set(ranks)) > 1:
        raise CapabilityError(
            f"{how.kind} needs adapters of one rank, and those of {target} have {ranks}: use svd or cat"
        )
    return ranks[0]


def become(new: Any, adapters: Sequence[Any], weights: Sequence[float], how: Combination) -> None:
    """Give ``new``, of the config that `combined_config` gave and perhaps on the meta device, the combination.

    Raises:
        CapabilityError: the layer is a convolution in groups, or a stack of weights: no one product is the change.
    """
    view = new.layer
    if view.kind == "stack" or (view.kind == "conv" and view.layer.groups > 1):
        what = "stacked parameters" if view.kind == "stack" else "a grouped convolution"
        raise CapabilityError(f"LoRA adapters of {what} cannot be combined")
    own = new.factors()
    values = _combined(adapters, weights, how, len(own[0]))
    names = ("lora_embedding_A", "lora_embedding_B") if view.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    tensors = {n: value.reshape(f.shape) for n, f, value in zip(names, own, values, strict=True)}
    pairs = list(zip(adapters, weights, strict=True))
    if view.kind != "embedding" and new.lora_B.bias is not None:
        biases = [(other.lora_B.bias, weight * other.scaling) for other, weight in pairs]
        shape, device = new.lora_B.bias.shape, view.device
        tensors["lora_B.bias"] = sum((b * w for b, w in biases if b is not None), torch.zeros(shape, device=device))
    if hasattr(new, "lora_magnitude_vector"):
        start = new.norm_of(view.weight.float())
        moves = [w * (getattr(other, "lora_magnitude_vector", other.norm()) - start) for other, w in pairs]
        tensors["lora_magnitude_vector"] = start + torch.stack(moves).sum(0)
    new.load_tensors(tensors)


def _combined(adapters: Sequence[Any], weights: Sequence[float], how: Combination, rank: int) -> Factors:
    """The factors ``A, B`` of the combination at one layer, flattened to matrices, for a scale of 1."""
    factors = [adapter.whole_factors() for adapter in adapters]
    pairs = [(_matrix(a), _matrix(b)) for a, b in factors]
    scales = [weight * adapter.scaling for weight, adapter in zip(weights, adapters, strict=True)]
    if how.kind in ("cat", "svd"):
        a = torch.cat([a * scale for (a, _), scale in zip(pairs, scales, strict=True)])
        b = torch.cat([b for _, b in pairs], dim=1)
        return (a, b) if how.kind == "cat" else _clamped(*refactorised(b, a, rank), how)
    if how.factorises:
        changes = [(b @ a) * adapter.scaling for (a, b), adapter in zip(pairs, adapters, strict=True)]
        return _clamped(*factorised(how.combine(changes, weights), rank), how)
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    return how.combine([a for a, _ in pairs], signed), how.combine([b for _, b in pairs], roots)


def _matrix(factor: Tensor) -> Tensor:
    """A factor in float32, flattened behind its first dimension."""
    return factor if factor.dtype is torch.float32 and factor.ndim == 2 else factor.float().flatten(1)


def _clamped(b: Tensor, a: Tensor, how: Combination) -> Factors:
    if how.svd_clamp is None:
        return a, b
    limit = torch.quantile(torch.cat([b.flatten(), a.flatten()]), how.svd_clamp)
    return a.clamp(-limit, limit), b.clamp(-limit, limit)


def since(
    config: LoraConfig, state: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """``s (B A - B0 A0)`` as one adapter of twice the rank, on the plain base: ``[B, -B0] [A; A0]`` at the same scale.

    Raises:
        CheckpointError: ``start`` lacks a tensor of ``state``, or has it in another shape.
        CapabilityError: the adapter has more than two factors.
    """
    for variant in ("use_dora", "use_bdlora"):
        if getattr(config, variant):
            raise CapabilityError(f"with {variant} no two factors are the difference to an adapter's start")
    grown = dict(state)
    for key, tensor in state.items():
        name = next((part for part in reversed(key.split(".")) if part.startswith("lora_")), "")
        if not name or key.endswith(".bias"):
            continue
        other = start.get(key)
        if other is None or other.shape != tensor.shape:
            raise CheckpointError(
                f"{key}: the adapter's start has {None if other is None else tuple(other.shape)} for it"
            )
        first = name.endswith("_A")
        grown[key] = torch.cat([tensor, other.to(tensor) if first else -other.to(tensor)], dim=0 if first else 1)
    times = math.sqrt(2) if config.use_rslora else 2
    changes = {
        "r": 2 * config.r, "lora_alpha": config.lora_alpha * times, "init_lora_weights": True,
        "rank_pattern": {name: 2 * rank for name, rank in config.rank_pattern.items()},
        "alpha_pattern": {name: alpha * times for name, alpha in config.alpha_pattern.items()},
    }  # fmt: skip
    return config.model_copy(update=changes), grown
