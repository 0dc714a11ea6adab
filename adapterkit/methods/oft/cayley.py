r"""Rotations from skew-symmetric matrices by Cayley's transform, :math:`(I + Q)(I - Q)^{-1}`: exactly, or by a series.

The usual series of five terms, ``I + 2 Q + 2 Q² + 2 Q³ + Q⁴``, is ``(I + 2 Q + Q²)(I + Q²)``: two products, and three
for its derivative, as ``Q²`` is symmetric and of what is derived by ``Q`` only the skew-symmetric part counts. Beside
the numbers it is made from, it keeps ``Q²`` for backward. Term by term it is three products, six and five matrices: on
blocks of 384 twice the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FACTORED = 5
"""The number of terms whose sum is a product of two factors of two terms and three."""


def skew(values: Tensor, size: int) -> Tensor:
    """``(n, size, size)``: what ``values (n, size (size - 1) / 2)`` are above the diagonal, row by row, of
    skew-symmetric matrices."""
    above, below = _places(size, values.device)
    flat = values.new_zeros(len(values), size * size)
    flat.index_copy_(1, above, values).index_copy_(1, below, -values)
    return flat.view(-1, size, size)


def _places(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a flattened matrix has the numbers above its diagonal, and where their counterparts below."""
    rows, columns = torch.triu_indices(size, size, 1, device=device)
    return rows * size + columns, columns * size + rows


def solved(q: Tensor) -> Tensor:
    """``(I + Q)^{-1} (I - Q)``, the transform of ``-Q``, as PEFT's exact form is. In float32 at least: no solver takes
    half precision."""
    exact = q.to(torch.promote_types(q.dtype, torch.float32))
    eye = torch.eye(q.shape[-1], dtype=exact.dtype, device=q.device)
    rotations: Tensor = torch.linalg.solve(eye + exact, eye - exact, left=False)
    return rotations.to(q.dtype)


def series(values: Tensor, size: int, terms: int) -> Tensor:
    """``I + 2 Q + ... + 2 Q^(n-1) + Q^n`` of ``Q = skew(values)``; ``terms`` is ``n + 1``, and 3 are taken for 4."""
    if terms == FACTORED and not _is_traced():
        with torch.autocast(values.device.type, enabled=False):
            return _Factored.apply(values, size)  # type: ignore[no-any-return, no-untyped-call]
    return by_terms(skew(values, size), terms)


def _is_traced() -> bool:
    """Whether operations are recorded one by one: by a transform of functions, by TorchScript, or by an export."""
    exported = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return exported or torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None


def by_terms(q: Tensor, terms: int) -> Tensor:
    """The series by Horner's rule."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    if terms == 2:
        return eye + 2 * q
    result = 2 * eye + q
    for _ in range(max(terms, 4) - 3):
        result = 2 * eye + q @ result
    return eye + q @ result


def _first_factor(q: Tensor, squared: Tensor) -> Tensor:
    """``I + 2 Q + Q²``."""
    factor = torch.add(squared, q, alpha=2)
    factor.diagonal(dim1=1, dim2=2).add_(1)
    return factor


class _Factored(torch.autograd.Function):
    """`series` of `FACTORED` terms."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        q = skew(values, size)
        squared = q @ q
        first = _first_factor(q, squared)
        ctx.size = size
        ctx.save_for_backward(values, squared)
        return torch.baddbmm(first, first, squared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, squared = ctx.saved_tensors
        q = skew(values, ctx.size)
        squared = q @ q if torch.is_grad_enabled() else squared  # where this derivative is to be derived itself
        grad_first = torch.baddbmm(grad, grad, squared)
        grad_squared = torch.baddbmm(grad_first, _first_factor(q, squared).mT, grad)
        # by Q, less its transpose: of dS Qᵀ + Qᵀ dS, with N = dS + dSᵀ, that is -(N Q + Q N) = (N Q)ᵀ - N Q
        total = grad_first.baddbmm_(grad_squared + grad_squared.mT, q, beta=2, alpha=-1).flatten(1)
        above, below = _places(ctx.size, values.device)
        return total.index_select(1, above).sub_(total.index_select(1, below)), None
