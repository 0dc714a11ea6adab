"""LoRA on a linear layer, alone or several adapters side by side: one low-rank product (`adapterkit.nn.low_rank`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adapterkit.methods.lora.ready import Direct, Ready, ready
from adapterkit.nn.kept import is_plain_inference
from adapterkit.nn.low_rank import low_rank_beside, low_rank_linear
from adapterkit.nn.thin import times_transposed

if TYPE_CHECKING:
    from adapterkit.methods.lora.adapter import LoraAdapter


def forward(chain: Sequence[LoraAdapter], layer: nn.Linear, x: Tensor) -> Tensor | None:
    """What ``chain`` does around a plain, frozen layer; None where that is left to the onion."""
    first, parameters = chain[0], layer._parameters
    if torch._C._are_functorch_transforms_active() or not _is_a_product(chain):
        return None
    dropout = first.dropout if first.training else 0.0
    if dropout and torch.compiler.is_compiling():
        return None
    weight: Any = parameters["weight"]
    if first.reads_weight:
        update = low_rank_linear(x, weight, None, *factors(first), first.scaling, dropout=dropout)
        return _rescaled(update, first.lora_magnitude_vector / first.norm(), parameters["bias"])
    kept = None if dropout else _ready(chain, x, weight)
    if kept is not None:
        return kept.apply(x, layer)
    return low_rank_linear(x, weight, parameters["bias"], *_joined(chain), dropout=dropout)


def beside(chain: Sequence[LoraAdapter], y: Tensor, x: Tensor) -> Tensor | None:
    """What ``chain`` makes of the output ``y`` of a linear layer of any class; None where that is left to the onion."""
    first = chain[0]
    if first.reads_weight or not _is_a_product(chain):
        return None
    dropout = first.dropout if first.training else 0.0
    kept = None if dropout else _ready(chain, x, y)
    return low_rank_beside(y, x, *(_joined(chain) if kept is None else kept.factors()), dropout=dropout)


def _is_a_product(chain: Sequence[LoraAdapter]) -> bool:
    """Whether ``chain`` is one low-rank product, its length apart, of an input of which no two drop something."""
    first = chain[0]
    if not first.is_plain or first.awaits_data or (len(chain) > 1 and not _are_summands(chain)):
        return False
    return not (first.training and first.dropout and "start_A" in first._buffers)  # a start's share is not dropped


def _ready(chain: Sequence[LoraAdapter], x: Tensor, other: Tensor) -> Direct | Ready | None:
    """What inference keeps, where no gradient is wanted and ``x`` has the type of the layer's own."""
    return ready(chain, x) if x.dtype is other.dtype and is_plain_inference() else None


def _are_summands(chain: Sequence[LoraAdapter]) -> bool:
    """Whether all that each adapter does is to add its product."""
    for adapter in chain:  # a loop, as `all` of a generator takes as long as a small kernel
        if not adapter.is_plain or adapter.awaits_data or adapter.reads_weight:
            return False
        if adapter.training and adapter.dropout:
            return False
    return True


def factors(adapter: LoraAdapter) -> tuple[Tensor, Tensor]:
    """``A, B`` on a linear layer, whose product is the whole change."""
    held: Any = adapter._modules  # past nn.Module.__getattr__, which costs as much as a small kernel
    if "start_A" in adapter._buffers:
        return adapter.whole_factors()
    a, b = held["lora_A"]._parameters.get("weight"), held["lora_B"]._parameters.get("weight")
    return (adapter.lora_A.weight, adapter.lora_B.weight) if a is None or b is None else (a, b)  # one is computed


def _joined(chain: Sequence[LoraAdapter]) -> tuple[Tensor, Tensor, float]:
    """One pair of factors and a scale that do what all of ``chain`` do, side by side along the rank."""
    if len(chain) == 1:
        return *factors(chain[0]), chain[0].scaling
    pairs, scaling = [factors(adapter) for adapter in chain], chain[0].scaling
    a = torch.cat([a for a, _ in pairs])
    if all(adapter.scaling == scaling for adapter in chain):
        return a, torch.cat([b for _, b in pairs], 1), scaling
    return a, torch.cat([b * adapter.scaling for (_, b), adapter in zip(pairs, chain, strict=True)], 1), 1.0


def _rescaled(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``scale * y + bias``, both ``(out,)``; in place of ``y``, which is ours, where no gradient needs it."""
    scale, bias = scale.to(y.dtype), None if bias is None else bias.to(y.dtype)
    if torch.is_grad_enabled():
        return y * scale if bias is None else torch.addcmul(bias, y, scale)
    y.mul_(scale)
    return y if bias is None else y.add_(bias)


def row_norms(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``||W + s B A||`` of every row without forming ``B A``, at least in float32: ``||W||^2 + 2 s <W A^T, B> +
    s^2 <B (A A^T), B>``.

    Args:
        weight: ``(out, in)``.
        a: ``(r, in)``.
        b: ``(out, r)``.
        scaling: ``s``.
    """
    a, b = (factor.float() if factor.element_size() < 4 else factor for factor in (a, b))
    weight = weight.to(a.dtype)
    cross = (b * times_transposed(weight, a)).sum(1)
    gram = ((b @ (a @ a.T)) * b).sum(1)
    squared: Tensor = torch.linalg.vector_norm(weight, dim=1).square_().add_(cross, alpha=2 * scaling)
    return squared.add_(gram, alpha=scaling**2).clamp_min_(0).sqrt_()
