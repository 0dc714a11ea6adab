"""A frozen linear layer and a low-rank product beside it, in as few kernels as it takes.

The onion computes ``W x + b``, ``A x``, ``B (A x)``, the scaling and the sum one after the other, each with a tensor of
the output's size. Here the low-rank product is added in place to the output that was just made: 2 kernels beyond the
base's. Backward adds its share of the input's gradient in place too, in 5 kernels, and what it needs is the input as
the layer got it (one tensor, however many layers share it) and ``A x``: the dropped input is made again from its seed,
and factors of another type are cast again. Beside a layer that is called as it is, a quantised one or one with hooks,
the sum is a new tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.autograd import forward_ad

from adapterkit.nn.dropout import draw_seed, keep_mask, rescale
from adapterkit.nn.forms import MAX_RANK, row_kernels
from adapterkit.nn.thin import times, times_transposed

_PLAIN = (Tensor, torch.nn.Parameter)

_FEW_ROWS = 64
"""Up to so many rows of a half type a CPU takes longer to set up a product than to compute it in float32."""


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, *, dropout: float = 0.0
) -> Tensor:
    """``W x + b + s B A drop(x)``, a tensor that nothing else holds.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``, frozen.
        bias: ``(out,)`` or None, frozen.
        a: ``(r, in)``, of any floating type: cast to that of ``x``, or to autocast's.
        b: ``(out, r)``.
        scaling: ``s``.
        dropout: how often an element of ``x`` is dropped on its way to ``A``.
    """
    x = _in_autocast(x)
    if weight.dtype is not x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if (torch.compiler.is_compiling() or forward_ad._current_level >= 0) and not dropout:
        return add_traced(F.linear(x, weight, bias), x, a, b, scaling)
    if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
        seed = draw_seed() if dropout else 0
        made = LowRankLinear.apply(x, weight, bias, a, b, scaling, dropout, seed)  # type: ignore[no-untyped-call]
        return _shaped(made, x)
    mask = keep_mask(x, dropout, draw_seed()) if dropout else None
    thin = type_of_products(x)
    return _shaped(_forward(x, mask, weight, bias, _typed(a, thin), _typed(b, thin), scaling * rescale(dropout))[0], x)


def low_rank_beside(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, *, dropout: float = 0.0) -> Tensor:
    """``y + s B A drop(x)`` in a new tensor, for a layer that is called as it is: others may hold what it gives.

    Args:
        y: the layer's output, ``(..., out)``, whose type the result has.
        x: ``(..., in)``.
        a: ``(r, in)``, as for `low_rank_linear`, like what follows.
        b: ``(out, r)``.
        scaling: ``s``.
        dropout: how often an element of ``x`` is dropped on its way to ``A``.
    """
    x = _in_autocast(x)
    if forward_ad._current_level >= 0 and not dropout:
        return add_traced(y, x, a, b, scaling)
    if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad or a.requires_grad or b.requires_grad):
        seed = draw_seed() if dropout else 0
        return _shaped(LowRankBeside.apply(y, x, a, b, scaling, dropout, seed), y)  # type: ignore[no-untyped-call]
    mask = keep_mask(x, dropout, draw_seed()) if dropout else None
    thin = type_of_products(x)
    return _shaped(_added(y, _inner(x, mask, _typed(a, thin)), _typed(b, thin), scaling * rescale(dropout)), y)


def product_added(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`low_rank_beside` where no gradient is wanted, with factors of the type that the product is computed in."""
    if x.is_cuda and y.is_contiguous():
        kernels = _kernels_for_row(y, x, a, b)
        if kernels is not None:
            return kernels.add_product(torch.empty_like(y), y, x, a, b, scaling)  # type: ignore[no-any-return]
    return _shaped(_added(y, _inner(x, None, a), b, scaling), y)


def type_of_products(x: Tensor) -> torch.dtype:
    """The type in which a thin product with ``x (..., in)`` is computed: that of ``x``, but float32 for a few rows of a
    half type on a CPU. Autocast has a type of its own."""
    is_short = x.is_cpu and x.dtype.itemsize <= 2 and x.numel() <= _FEW_ROWS * x.shape[-1]
    return torch.float32 if is_short and not torch.is_autocast_enabled("cpu") else x.dtype


def add_traced(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``y + s B A x`` in operations that a compiler fuses with what stands around them, and derives; in forward mode,
    too.

    A single row on a GPU waits for kernels to be started: as sums, the two products are one each, and they take the
    factors as they are, where a product of matrices has them cast first.
    """
    if x.is_cuda and x.numel() == x.shape[-1]:
        return add_as_sums(y, x, a, b, scaling)
    return y + (F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scaling).to(y.dtype)


def add_as_sums(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``y + s B A x`` for a single row ``x (..., in)``, at least in float32."""
    row = x.reshape(-1)
    low = ((row if row.dtype is torch.float64 else row.float()) * a).sum(1)  # (r,)
    return y + ((b * low).sum(1) * scaling).to(y.dtype)


def product_beside(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``W x + b + s B A x`` where no gradient is wanted, all of one type. A single row on a CPU is taken as the vector
    that it is, on a GPU in one kernel."""
    shape = x.shape
    width = shape[-1]
    if x.numel() == width:
        if x.is_cpu and x.dtype is torch.float32:
            row = x.reshape(width)
            y = weight.mv(row) if bias is None else torch.addmv(bias, weight, row)
            return y.addmv_(b, a.mv(row), alpha=scaling).view(*shape[:-1], -1)
        kernels = _kernels_for_row(x, x, a, b) if x.is_cuda else None
        if kernels is not None:
            y = F.linear(x, weight, bias)
            return kernels.add_product(y, y, x, a, b, scaling)  # type: ignore[no-any-return]
    return _shaped(_forward(x, None, weight, bias, a, b, scaling)[0], x)


def _kernels_for_row(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Any:
    """`adapterkit.nn.triton_rows` if there is a single row, plain enough to be given to a kernel by its address."""
    if x.numel() != x.shape[-1] or len(a) > MAX_RANK or not (x.is_contiguous() and a.is_contiguous()):
        return None
    device = x.get_device()
    for tensor in (y, x, a, b):
        if type(tensor) not in _PLAIN or tensor.get_device() != device or tensor.element_size() > 4:
            return None
    return row_kernels()


def _forward(
    x: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """``W x + b + s B A (mask x)`` as ``(rows, out)``, and ``A (mask x)``, which has the type of ``A`` and ``B``."""
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])  # 2-D is the shorter way through PyTorch, too
    y = F.linear(rows, weight, bias)
    low = _inner(rows, mask, a)
    _add_product(y, low, b.t(), scaling)
    return y, low


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """``flat (rows, out)`` as ``(..., out)``, where ``like`` is ``(..., any)``.

    Outside of the functions below: models write into what their layers give (``query /= 8``), which PyTorch forbids for
    a view that a function has made.
    """
    return flat if like.ndim == 2 else flat.view(*like.shape[:-1], flat.shape[1])


def _inner(x: Tensor, mask: Tensor | None, a: Tensor) -> Tensor:
    """``A (mask x)``, of the type of ``A``, as ``(rows, r)``."""
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return times_transposed(_typed(rows if mask is None else rows * mask.view(rows.shape), a.dtype), a)


def _added(y: Tensor, low: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``y + s B low`` as ``(rows, out)``, in a new tensor of the type of ``y``."""
    rows = y if y.ndim == 2 else y.reshape(-1, y.shape[-1])
    if y.dtype is low.dtype:
        return torch.addmm(rows, low, b.t(), alpha=scaling)
    return rows.to(low.dtype).addmm_(low, b.t(), alpha=scaling).to(y.dtype)


def _in_autocast(x: Tensor) -> Tensor:
    """``x`` in the type that autocast takes products in, where it is on."""
    if _is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _typed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in this type."""
    return x if x.dtype is dtype else x.to(dtype)  # the call alone takes as long as a small kernel


def _add_product(y: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """``y + s left right``, written to ``y``, whatever the type of the two."""
    if y.dtype is left.dtype:
        return y.addmm_(left, right, alpha=scaling)
    return y.add_(left @ right, alpha=scaling)


class LowRankLinear(torch.autograd.Function):
    """`low_rank_linear` with its derivative; the output is ``(rows, out)``."""

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
        ctx.scaling, ctx.dropout, ctx.seed = scaling * rescale(dropout), dropout, seed
        mask = keep_mask(x, dropout, seed) if dropout else None
        thin = type_of_products(x)
        y, low = _forward(x, mask, weight, bias, _typed(a, thin), _typed(b, thin), ctx.scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, own_a, own_b, low = ctx.saved_tensors
        a, scaling = _typed(own_a, low.dtype), ctx.scaling
        mask = keep_mask(x, ctx.dropout, ctx.seed) if ctx.dropout else None
        if torch.is_grad_enabled():  # this derivative is to be derived itself
            factors = own_a.to(x.dtype), own_b.to(x.dtype)
            shares = _differentiable(grad, x, weight, *factors, scaling, mask)
            return shares[0], None, None, *shares[1:], None, None, None
        needs_x, _, _, *needs = ctx.needs_input_grad
        grad_x = None
        grad_low, grad_a, grad_b = _to_factors(needs, grad, x, a, own_a, own_b, low, scaling, mask)
        if needs_x:
            grad_x = grad @ weight
            if mask is None:
                _add_product(grad_x, grad_low, a, scaling)
            else:
                grad_x.add_((grad_low @ a).mul_(mask.view(grad_x.shape)), alpha=scaling)
            grad_x = grad_x.view(x.shape)
        return grad_x, None, None, grad_a, grad_b, None, None, None


class LowRankBeside(torch.autograd.Function):
    """`low_rank_beside` with its derivative; the output is ``(rows, out)``."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, dropout: float, seed: int
    ) -> Tensor:
        ctx.scaling, ctx.dropout, ctx.seed = scaling * rescale(dropout), dropout, seed
        mask = keep_mask(x, dropout, seed) if dropout else None
        thin = type_of_products(x)
        low = _inner(x, mask, _typed(a, thin))
        ctx.save_for_backward(x, a, b, low)
        return _added(y, low, _typed(b, thin), ctx.scaling)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, own_a, own_b, low = ctx.saved_tensors
        a, scaling = _typed(own_a, low.dtype), ctx.scaling
        mask = keep_mask(x, ctx.dropout, ctx.seed) if ctx.dropout else None
        needs_y, needs_x, *needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            factors = own_a.to(x.dtype), own_b.to(x.dtype)
            shares = _differentiable(grad.to(x.dtype), x, None, *factors, scaling, mask)
            return grad.reshape(*x.shape[:-1], -1), *shares, None, None, None
        grad_x = None
        grad_low, grad_a, grad_b = _to_factors(needs, grad, x, a, own_a, own_b, low, scaling, mask)
        if needs_x:
            share = torch.addmm(grad_low.new_empty(()), grad_low, a, beta=0, alpha=scaling).view(x.shape)
            grad_x = _typed(share if mask is None else share.mul_(mask), x.dtype)
        grad_y = grad.reshape(*x.shape[:-1], -1) if needs_y else None
        return grad_y, grad_x, grad_a, grad_b, None, None, None


def _to_factors(
    needs: Sequence[bool],
    grad: Tensor,
    x: Tensor,
    a: Tensor,
    own_a: Tensor,
    own_b: Tensor,
    low: Tensor,
    scaling: float,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of ``A x (rows, r)``, A and B from the output's, ``grad (rows, out)``; ``a`` is A in the type of
    the product."""
    b, thin = _typed(own_b, low.dtype), _typed(grad, low.dtype)
    grad_low, grad_a, grad_b = times(thin, b), None, None
    if needs[0]:
        kept = _typed((x if mask is None else x * mask).reshape(-1, x.shape[-1]), low.dtype)
        grad_a = _typed(torch.addmm(a, grad_low.t(), kept, beta=0, alpha=scaling), own_a.dtype)
    if needs[1]:  # the long way round is twice as fast on a CPU as a product with r columns
        grad_b = torch.addmm(b.t(), low.t(), thin, beta=0, alpha=scaling).t()
        if grad_b.dtype is not own_b.dtype:
            grad_b = grad_b.to(own_b.dtype, memory_format=torch.contiguous_format)
    return grad_low, grad_a, grad_b


def _differentiable(
    grad: Tensor, x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scaling: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, A and B in operations that autograd can follow; without a weight, of the product alone."""
    kept = x if mask is None else x * mask
    rows = kept.reshape(-1, x.shape[-1])
    grad_low = grad @ b
    share = (grad_low @ a).view(x.shape) * scaling
    share = share if mask is None else share * mask
    grad_x = share if weight is None else (grad @ weight).view(x.shape) + share
    return grad_x, grad_low.t() @ rows * scaling, grad.t() @ (rows @ a.t()) * scaling
