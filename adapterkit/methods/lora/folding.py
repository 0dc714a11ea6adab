r"""LoRA adapters for programs that know one rank, one alpha and plain factors: the rest is put into the factors.

.. math:: s_i B_i A_i = \frac{\alpha}{r} \left(\frac{s_i r}{\alpha} B_i \;\; 0\right) \binom{A_i}{0}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapterkit.config.layer import is_suffix
from adapterkit.errors import CapabilityError
from adapterkit.methods.lora import blocks, grouped
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.methods.lora.padding import longer

_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))


@torch.no_grad()
def folded(config: LoraConfig, tensors: Mapping[str, Tensor]) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same adapter with one rank, one scale and whole factors.

    The scale that most modules have stays in ``lora_alpha`` where that is an integer, so that their factors are left as
    they are; elsewhere ``lora_B``, in its own type, takes in what is left of the scale.

    Args:
        config: with whatever patterns.
        tensors: by the keys of a file; they are not changed.

    Raises:
        CapabilityError: ranks differ, and factors of stacked experts, or of a convolution's groups, keep theirs.
    """
    pairs = {stem: names for key in tensors for stem, names in [_pair(key)] if names is not None}
    own = {stem: config.at(_module(stem)) for stem in pairs}
    rank = max(each.r for each in own.values())
    scales = {stem: each.lora_alpha / (math.sqrt(each.r) if each.use_rslora else each.r) for stem, each in own.items()}
    alpha = _alpha(scales.values(), rank)
    found = dict(tensors)
    for stem, (first, second) in pairs.items():
        a, b = _whole(own[stem], tensors[stem + first], tensors[stem + second])
        if own[stem].r != rank and (a.shape[0], b.shape[1]) != (own[stem].r, own[stem].r):
            raise CapabilityError(f"{_module(stem)}: factors of experts or groups cannot be given another rank")
        factor, padded = scales[stem] * rank / alpha, rank - own[stem].r
        found[stem + first] = longer(a, len(a) + padded, 0)
        found[stem + second] = longer(_times(b, factor), b.shape[1] + padded, 1)
        if f"{stem}lora_B.bias" in tensors:
            found[f"{stem}lora_B.bias"] = _times(tensors[f"{stem}lora_B.bias"], factor)
    changes: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}}
    return config.model_copy(update={**changes, "use_rslora": False, "use_bdlora": None, "use_qalora": False}), found


def _pair(key: str) -> tuple[str, tuple[str, str] | None]:
    """Where the first factor that a key names stands, and the names of both; None for other tensors."""
    names = next((names for names in _PAIRS if is_suffix(names[0], key)), None)
    return ("", None) if names is None else (key.removesuffix(names[0]), names)


def _module(stem: str) -> str:
    return stem.removeprefix("base_model.model.").removesuffix(".")


def _alpha(scales: Any, rank: int) -> int:
    """The alpha that leaves most factors as they are; the rank, for a scale of 1, where it would be no integer."""
    usual = Counter(scales).most_common(1)[0][0] * rank
    return round(usual) if usual >= 1 and math.isclose(usual, round(usual), rel_tol=1e-12) else rank


def _whole(config: LoraConfig, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors for all inputs and outputs, where they are stored for groups or in blocks."""
    group = config.qalora_group_size if config.use_qalora else 1
    settings = config.use_bdlora
    if settings is None:
        return grouped.spread(a, group), b
    first = bool(settings.target_modules_bd_a)
    return (blocks.spread(a, settings.nblocks), b) if first else (a, blocks.spread(b, settings.nblocks))


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else (tensor.double() * factor).to(tensor.dtype)
