"""Ways to start LoRA's two factors. Each gives ``A (r, in)`` and ``B (out, r)``.

Those that start from the frozen weight (PiSSA, OLoRA) give factors whose product is not zero. The frozen weight is not
touched for it: the adapter subtracts the starting product, so that it starts as the base model and disabling it *is*
the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from adapterkit.errors import ConfigError

Factors = tuple[Tensor, Tensor]


def start(a: Tensor, b: Tensor, scheme: bool | str, r: int) -> None:
    """Fill the factors in place by a scheme that needs no weight: True, False, ``gaussian``, ``orthogonal``.

    Args:
        a: ``(r, ...)``, the first factor.
        b: ``(out, r, ...)``, the second.
        r: the rank; ``A`` has several times as many rows for stacked weights.
        scheme: True draws A as `torch.nn.Linear` draws its weight, and sets B to zero; False draws both.
    """
    if scheme == "orthogonal":
        _orthogonal(a, b)
        return
    if scheme == "gaussian":
        torch.nn.init.normal_(a, std=1 / r)
    else:
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # what nn.Linear does: U(-1/sqrt(in), 1/sqrt(in))
    if scheme is False:
        torch.nn.init.kaiming_uniform_(b, a=math.sqrt(5))
    else:
        torch.nn.init.zeros_(b)


def _orthogonal(a: Tensor, b: Tensor) -> None:
    """Rows of A and columns of B in complementary subspaces of R^r, so that ``B A = 0`` with neither zero."""
    r = a.shape[0]
    if r % 2:
        raise ConfigError(f"init_lora_weights='orthogonal' needs an even r, not {r}")
    q = torch.linalg.qr(torch.randn(r, r)).Q
    left = torch.randn(a[0].numel(), r // 2) @ q[0::2]  # (in, r)
    right = torch.randn(b.shape[0], r // 2) @ q[1::2]  # (out, r)
    a.copy_((left.T / 10).reshape(a.shape))
    b.copy_((right / 10).reshape(b.shape))


def from_weight(scheme: str, weight: Tensor, r: int, scaling: float) -> Factors:
    """Factors with ``scaling * B A`` a part of ``weight (out, in)``, by ``pissa``, ``pissa_niter_<n>`` or ``olora``."""
    name, _, steps = scheme.partition("_niter_")
    return SCHEMES[name](weight.float(), r, scaling, int(steps) if steps else None)


def pissa(weight: Tensor, r: int, scaling: float, steps: int | None) -> Factors:
    """The principal singular directions (Meng et al., 2024, https://arxiv.org/abs/2404.02948): ``A = sqrt(S/s) V^T``,
    ``B = U sqrt(S/s)``; with ``steps`` by a randomised SVD of so many power iterations."""
    if steps is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)  # the same start on every load, whatever the run's seed
            u, s, v = torch.svd_lowrank(weight, q=r, niter=steps)
        vh = v.T
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def olora(weight: Tensor, r: int, scaling: float, steps: int | None) -> Factors:
    """The leading part of a QR decomposition (Büyükakyüz, 2024, https://arxiv.org/abs/2406.01775)."""
    q, upper = torch.linalg.qr(weight)
    return upper[:r], q[:, :r]


SCHEMES: dict[str, Callable[[Tensor, int, float, int | None], Factors]] = {"pissa": pissa, "olora": olora}


def needs_weight(scheme: bool | str) -> bool:
    """Whether a scheme starts from the frozen weight."""
    return isinstance(scheme, str) and scheme.partition("_niter_")[0] in SCHEMES
