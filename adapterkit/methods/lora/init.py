"""Ways to start LoRA's two factors. Each gives ``A (r, in)`` and ``B (out, r)``.

Those that start from the frozen weight (PiSSA, OLoRA) give factors whose product is not zero. The frozen weight is not
touched for it: the adapter subtracts the starting product, so that it starts as the base model and disabling it *is*
the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapterkit.errors import ConfigError
from adapterkit.nn import storage

Factors = tuple[Tensor, Tensor]


def start(a: Tensor, b: Tensor, scheme: bool | str, r: int) -> None:
    """Fill the factors in place by a scheme that needs no weight: True, False, ``gaussian``, ``orthogonal``.

    Args:
        a: ``(r, ...)``, the first factor.
        b: ``(out, r, ...)``, the second.
        scheme: True draws A as `torch.nn.Linear` draws its weight, and sets B to zero; False draws both.
        r: the rank; ``A`` has several times as many rows for stacked weights.

    Raises:
        ConfigError: ``orthogonal`` of an odd rank.
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
            torch.default_generator.manual_seed(0)  # the same start on every load, whatever the run's seed
            u, s, v = torch.svd_lowrank(weight, q=r, niter=steps)
        vh = v.T
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def olora(weight: Tensor, r: int, scaling: float, steps: int | None) -> Factors:
    """The leading part of a QR decomposition (Büyükakyüz, 2024, https://arxiv.org/abs/2406.01775)."""
    q, upper = torch.linalg.qr(weight)
    return upper[:r], q[:, :r]


SCHEMES: dict[str, Callable[[Tensor, int, float, int | None], Factors]] = {"pissa": pissa, "olora": olora}


class Eigens(NamedTuple):
    """The part of ``W C`` that CorDA starts from, ``U S V^T C = W C`` with the covariance ``C`` of the inputs."""

    S_WC: Tensor  # (r,)
    U_WC: Tensor  # (out_features, r)
    V_WC: Tensor  # (in_features, r), multiplied by the inverse of C


def from_eigens(eigens: Eigens, scaling: float) -> Factors:
    """Factors whose product, scaled, is that part of the weight."""
    root = (eigens.S_WC / scaling).sqrt()
    return eigens.V_WC.T * root[:, None], eigens.U_WC * root


def from_gradient(gradient: Tensor, weight: Tensor, adapter: Any, settings: Any) -> Factors:
    """LoRA-GA: some of the leading directions of the loss's gradient with respect to ``weight (out, in)``.

    Raises:
        ConfigError: there are fewer than two for each rank.
    """
    r, gradient = adapter.r, gradient.float()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        u, s, v = torch.svd_lowrank(gradient, q=min(4 * r, *gradient.shape), niter=4)
        choices: dict[str, tuple[Any, Any]] = {
            "ArBr": (slice(1, 2 * r, 2), slice(0, 2 * r, 2)),
            "A2rBr": (slice(r, 2 * r), slice(0, r)),
            "ArB2r": (slice(0, r), slice(r, 2 * r)),
            "random": (torch.randperm(2 * r)[:r],) * 2,
        }
        wanted = settings.scale == "weight_svd"
        top = torch.svd_lowrank(weight.float(), q=min(4 * r, *weight.shape), niter=4)[1][0] if wanted else None
    if 2 * r > min(gradient.shape):
        raise ConfigError(f"init_lora_weights='lora_ga' takes 2 r directions; a weight {tuple(weight.shape)} has fewer")
    rows, columns = choices[settings.direction]
    a, b, strengths = v.T[rows], u[:, columns] * s[columns], s[columns]
    if settings.scale == "stable":
        return a, b * (len(weight) ** 0.25 / settings.stable_gamma**0.5)
    if top is not None:
        return a, b * (top / strengths[0]) if strengths[0] > 0 else b
    return (a / adapter.scaling, b / adapter.scaling) if settings.scale == "gd_scale" else (a, b)


def loftq(weight: Tensor, r: int, *, bits: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """A quantised weight, read back, and the factors of what it loses: ``weight ~ quantised + B A``."""
    target = weight
    for _ in range(rounds):
        rounded = storage.rounded(target, bits)
        a, b = leading(weight - rounded, r)
        target = weight - b @ a
    return rounded, a, b


def leading(matrix: Tensor, r: int) -> Factors:
    """The factors of rank ``r`` whose product is nearest to a matrix ``(out, in)``, of like size."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:r].sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def needs_data(scheme: bool | str) -> bool:
    """Whether a scheme starts from training data."""
    return scheme in ("eva", "corda", "lora_ga")


def needs_weight(scheme: bool | str) -> bool:
    """Whether a scheme starts from the frozen weight."""
    return isinstance(scheme, str) and scheme.partition("_niter_")[0] in SCHEMES
