"""Adaption prompts: Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention".

2023, https://arxiv.org/abs/2303.16199. Around the attention block, ``y + g * O softmax(Q K_P^T / sqrt(d)) V_P``, with
``O`` the block's own output projection, and ``K_P`` and ``V_P`` its keys and values of learnt tokens ``P`` (section
3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.errors import CapabilityError
from adapterkit.nn.block import BlockAdapter

if TYPE_CHECKING:
    from adapterkit.methods.adaption_prompt.config import AdaptionPromptConfig
    from adapterkit.nn.view import LayerView

SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj")
FUSED = ("c_attn", "num_heads")


@final
class AdaptionPromptAdapter(BlockAdapter):
    """``y + g O(softmax(Q K_P^T / sqrt(d)) V_P)``; as in PEFT, a block with one fused projection applies no ``O``."""

    def __init__(self, config: AdaptionPromptConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        block: Any = layer.layer
        self.fused_projection = all(hasattr(block, name) for name in FUSED)
        if not self.fused_projection and not all(hasattr(block, name) for name in SEPARATE):
            raise CapabilityError(
                f"ADAPTION_PROMPT needs an attention block with {', '.join(SEPARATE)} or {FUSED[0]}, "
                f"and a {type(block).__name__} has neither"
            )
        if hasattr(block, "q_norm") or getattr(block, "is_cross_attention", False):
            raise CapabilityError(
                f"ADAPTION_PROMPT knows no normed queries and no cross-attention: {type(block).__name__}"
            )
        width = block.embed_dim if self.fused_projection else block.q_proj.in_features
        self.adaption_prompt = nn.Parameter(torch.randn(1, config.adapter_len, width))  # (1, tokens, hidden_size)
        self.adaption_gate = nn.Parameter(torch.zeros(1))  # (1,)

    @override
    def adapt_block(self, y: Tensor, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        query, key, value, project = self._fused(x) if self.fused_projection else self._separate(x)
        query = _rotated(query, inputs.get("position_embeddings"))
        groups = query.shape[1] // key.shape[1]  # query heads to a key head
        key, value = (heads.repeat_interleave(groups, dim=1).to(query.dtype) for heads in (key, value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # (rows, heads, columns, tokens)
        weights = self.adaption_gate * scores.softmax(-1, dtype=torch.float32)
        attended = (weights.to(query.dtype) @ value).transpose(1, 2).flatten(2)
        change = project(attended)
        bias = getattr(project, "bias", None)
        if bias is not None:  # the block's output has it already
            change = change - bias
        adapted: Tensor = y + change.to(y.dtype)
        return adapted

    def _separate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, nn.Module]:
        block: Any = self.layer.layer
        prompt = self.adaption_prompt.to(x.dtype)
        projected = (block.q_proj(x), block.k_proj(prompt), block.v_proj(prompt))
        query, key, value = (_heads(tensor, block.head_dim) for tensor in projected)
        return query, key, value, block.o_proj

    def _fused(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, nn.Module]:
        block: Any = self.layer.layer
        width = block.embed_dim
        query = block.c_attn(x)[..., :width]
        key, value = block.c_attn(self.adaption_prompt.to(x.dtype))[..., width:].split(width, dim=-1)
        query, key, value = (_heads(tensor, width // block.num_heads) for tensor in (query, key, value))
        return query, key, value, nn.Identity()


def _heads(tensor: Tensor, width: int) -> Tensor:
    """``(rows, columns, heads * width)`` to ``(rows, heads, columns, width)``."""
    return tensor.view(*tensor.shape[:-1], -1, width).transpose(1, 2)


def _rotated(query: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries turned by their positions, as in RoFormer (https://arxiv.org/abs/2104.09864), halves paired.

    Args:
        query: ``(rows, heads, columns, width)``.
        angles: cosines and sines, each ``(1 or rows, columns, width)``; None turns nothing.
    """
    if angles is None:
        return query
    cos, sin = (part.unsqueeze(1) for part in angles)
    if cos.shape[-1] != query.shape[-1]:
        raise CapabilityError("ADAPTION_PROMPT knows no heads that are turned in part")
    first, second = query.chunk(2, dim=-1)
    return query * cos + torch.cat([-second, first], dim=-1) * sin
