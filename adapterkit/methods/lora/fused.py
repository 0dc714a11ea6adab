"""LoRA on a plain linear layer in as few kernels as it takes.

The onion computes ``W x + b``, ``A x``, ``B (A x)``, the scaling and the sum one after the other, each with a tensor of
the output's size. Here the low-rank product is added in place to the output that was just made, and backward adds its
share of the input's gradient in place too: 2 kernels beyond the base's forward, and 4 in backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``W x + b + s B A x``.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``, frozen.
        bias: ``(out,)`` or None, frozen.
        a: ``(r, in)``, of any floating type: cast to that of ``x``, or to autocast's.
        b: ``(out, r)``.
        scaling: ``s``.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x, weight, a, b = x.to(dtype), weight.to(dtype), a.to(dtype), b.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():
        return _forward(x, weight, bias, a, b, scaling)[0]
    return LoraLinear.apply(x, weight, bias, a, b, scaling)[0]  # type: ignore[no-any-return, no-untyped-call]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    y = F.linear(x, weight, bias)
    low = F.linear(x, a)  # (..., r)
    y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.t(), alpha=scaling)
    return y, low


class LoraLinear(torch.autograd.Function):
    """`lora_linear` with its derivative. Keeps ``x`` once, and ``A x``."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        return _forward(x, weight, bias, a, b, scaling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, a, b, ctx.scaling = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, a, b, output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        flat, low = grad.reshape(-1, grad.shape[-1]), low.view(-1, low.shape[-1])
        grad_low = flat @ b  # (rows, r)
        grad_a = torch.mm(grad_low.t(), x.reshape(-1, x.shape[-1])).mul_(ctx.scaling)
        grad_b = torch.mm(flat.t(), low).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (flat @ weight).addmm_(grad_low, a, alpha=ctx.scaling).view(x.shape)
        return grad_x, None, None, grad_a, grad_b, None
