"""LoRA on a plain linear layer in as few kernels as it takes.

The onion computes ``W x + b``, ``A x``, ``B (A x)``, the scaling and the sum one after the other, each with a tensor of
the output's size. Here the low-rank product is added in place to the output that was just made: 2 kernels beyond the
base's. Backward adds its share of the input's gradient in place too, in 4 kernels, and what it needs is the input as
the layer got it (one tensor, however many layers share it) and ``A x``: the dropped input is made again from its seed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterkit.nn.dropout import draw_seed, keep_mask, rescale


def lora_linear(
    x: Tensor, layer: nn.Linear, a: Tensor, b: Tensor, scaling: float, dropout: float = 0.0
) -> Tensor | None:
    """``W x + b + s B A drop(x)``; None where a transform of `torch.func` is at work.

    Args:
        x: ``(..., in)``.
        layer: plain and frozen.
        a: ``(r, in)``, of any floating type: cast to that of ``x``, or to autocast's.
        b: ``(out, r)``.
        scaling: ``s``.
        dropout: how often an element of ``x`` is dropped on its way to ``A``.
    """
    if torch._C._are_functorch_transforms_active():
        return None
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    weight: Any = layer._parameters["weight"]
    bias = layer._parameters["bias"]
    if a.dtype is not dtype:
        a, b = a.to(dtype), b.to(dtype)
    if x.dtype is not dtype or weight.dtype is not dtype:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
        seed = draw_seed() if dropout else 0
        return LoraLinear.apply(x, weight, bias, a, b, scaling, dropout, seed)  # type: ignore[no-any-return, no-untyped-call]
    kept = x * keep_mask(x, dropout, draw_seed()) * rescale(dropout) if dropout else x
    return _forward(x, kept, weight, bias, a, b, scaling)[0]


def _forward(
    x: Tensor, kept: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    y = F.linear(x, weight, bias)
    low = F.linear(kept, a)  # (..., r)
    y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.t(), alpha=scaling)
    return y, low


class LoraLinear(torch.autograd.Function):
    """`lora_linear` with its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        ctx.scaling, ctx.dropout, ctx.seed = scaling, dropout, seed
        kept = x * keep_mask(x, dropout, seed) if dropout else x
        if dropout:
            scaling = scaling * rescale(dropout)
        y, low = _forward(x, kept, weight, bias, a, b, scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        mask = keep_mask(x, ctx.dropout, ctx.seed) if ctx.dropout else None
        scaling = ctx.scaling * rescale(ctx.dropout)
        if torch.is_grad_enabled():  # this derivative is to be derived itself
            return _differentiable(ctx.needs_input_grad, grad, x, weight, a, b, scaling, mask)
        needs_x, _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        flat, grad_x, grad_a, grad_b = grad.reshape(-1, grad.shape[-1]), None, None, None
        grad_low = flat @ b  # (rows, r)
        if needs_a:
            kept = (x if mask is None else x * mask).reshape(-1, x.shape[-1])
            grad_a = torch.addmm(a, grad_low.t(), kept, beta=0, alpha=scaling)
        if needs_b:
            grad_b = torch.addmm(b, flat.t(), low.view(-1, low.shape[-1]), beta=0, alpha=scaling)
        if needs_x:
            grad_x = flat @ weight
            if mask is None:
                grad_x.addmm_(grad_low, a, alpha=scaling)
            else:
                grad_x.add_((grad_low @ a).mul_(mask.view(grad_x.shape)), alpha=scaling)
            grad_x = grad_x.view(x.shape)
        return grad_x, None, None, grad_a, grad_b, None, None, None


def _differentiable(
    needs: tuple[bool, ...],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    mask: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The derivative in operations that autograd can follow."""
    kept = x if mask is None else x * mask
    flat, rows = grad.reshape(-1, grad.shape[-1]), kept.reshape(-1, x.shape[-1])
    grad_low = flat @ b
    share = (grad_low @ a).view(x.shape) * scaling
    grad_x = grad @ weight + (share if mask is None else share * mask) if needs[0] else None
    return grad_x, None, None, grad_low.t() @ rows * scaling, flat.t() @ (rows @ a.t()) * scaling, None, None, None
