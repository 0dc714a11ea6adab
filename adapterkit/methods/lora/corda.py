r"""CorDA (Yang et al., 2024), https://arxiv.org/abs/2406.05223: A and B start as the part of the weight that the data
use most (``ipm``) or least (``kpm``).

.. math:: W C = U S V^T, \quad W = U S (V^T C^{-1})

with the covariance ``C = X^T X`` of the layer's inputs, each batch of which is divided by its largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CheckpointError, ConfigError, TrainingError
from adapterkit.files import replacing
from adapterkit.given import check_callable
from adapterkit.methods.lora import start
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.methods.lora.init import Eigens
from adapterkit.methods.lora.observe import (
    as_base,
    device_of,
    frozen_of,
    in_mode,
    learnt,
    observing,
    on_device,
    rows_of,
    targets_of,
)
from adapterkit.methods.lora.starts import CordaConfig
from adapterkit.nn.view import LayerView

BATCHES = 256
"""How many batches a run looks at; the paper takes 256 samples of 2048 tokens."""

Layers = Mapping[str, nn.Module]


@torch.no_grad()
def preprocess_corda(
    model: nn.Module,
    lora_config: LoraConfig,
    run_model: Callable[[], None] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Learn of the data what CorDA starts from; `adapterkit.get_peft_model` then finds it at the layers, and leaves it.

    Args:
        model: the plain model.
        lora_config: with ``init_lora_weights="corda"``.
        run_model: calls the model on samples of the data; not needed where a file has what it would give.
        hooked_model: the model that ``run_model`` calls, if another.

    Raises:
        ConfigError: the config starts otherwise, or there are neither samples nor a file.
        CheckpointError: a file is none of tensors, or is of other layers or ranks.
    """
    if run_model is not None:
        check_callable(run_model, "run_model")
    seen = targets_of(hooked_model or model, lora_config)

    def look(see: Callable[[str, Tensor], None]) -> None:
        if run_model is None:
            raise ConfigError("preprocess_corda needs run_model where neither of corda_config's files is there")
        with in_mode(hooked_model or model, training=False), observing(seen, see):
            run_model()

    _learn(targets_of(model, lora_config), lora_config, look)


def _learn(layers: Layers, config: LoraConfig, look: Callable[[Callable[[str, Tensor], None]], None]) -> None:
    """Leave at every layer the decomposition that its adapter starts from."""
    settings = config.corda_config
    if settings is None:
        raise ConfigError(f"CorDA needs init_lora_weights='corda', not {config.init_lora_weights!r}")
    keys = [f"{name}.eigens.{part}" for name in layers for part in Eigens._fields]
    known = learnt(settings.cache_file, keys, device_of(layers))
    if known is None:
        covariances = _covariances(layers, settings, look)
        found = {name: _eigens(layer, covariances[name], config.at(name)) for name, layer in layers.items()}
        known = {f"{name}.eigens.{part}": t for name, eigens in found.items() for part, t in eigens._asdict().items()}
        _write(settings.cache_file, known)
    for name, layer in layers.items():
        parts = Eigens(*(known[f"{name}.eigens.{part}"].to(device_of({name: layer})) for part in Eigens._fields))
        rank, r = len(parts.S_WC), config.at(name).r
        if rank != r:
            raise CheckpointError(f"{settings.cache_file} is of another rank: {rank} at {name!r}, not {r}; delete it")
        setattr(layer, start.EIGENS, parts)


def _covariances(
    layers: Layers, settings: CordaConfig, look: Callable[[Callable[[str, Tensor], None]], None]
) -> dict[str, Tensor]:
    known = learnt(settings.covariance_file, layers, device_of(layers))
    if known is not None:
        return known
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if settings.use_float16_for_covariance else rows.float()
        rows = rows / rows.max().abs()
        product = rows.T @ rows
        if not product.isfinite().all():
            raise TrainingError(f"CorDA: the covariance of the inputs of {name!r} is not finite")
        sums[name] = sums[name] + product if name in sums else product
        counts[name] = counts.get(name, 0) + 1

    look(see)
    missing = [name for name in layers if name not in sums]
    if missing:
        raise ConfigError(f"CorDA: the samples have not reached {missing}")
    means = {name: sums[name] / counts[name] for name in layers}
    _write(settings.covariance_file, means)
    return means


def _eigens(layer: nn.Module, covariance: Tensor, config: LoraConfig) -> Eigens:
    weight = LayerView(layer).weight.float()
    damped, inverse = _inverted(covariance.to(weight))
    u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    v, r = (vh @ inverse).T, config.r
    if r > len(s):
        raise ConfigError(f"init_lora_weights='corda' takes r={r} directions; a weight {tuple(weight.shape)} has fewer")
    settings: Any = config.corda_config
    kept = slice(0, r) if settings.corda_method == "ipm" else slice(len(s) - r, len(s))
    return Eigens(s[kept].clone(), u[:, kept].clone(), v[:, kept].clone())


def _inverted(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance, damped until it can be inverted, and its inverse."""
    one, damping = torch.eye(len(covariance), device=covariance.device), 0.01
    while True:
        damped = covariance + one * covariance.diagonal().mean() * damping
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < 0.05:
            return damped, inverse
        damping *= 2


def _write(path: str | None, tensors: dict[str, Tensor]) -> None:
    if path is not None:
        with replacing(Path(path)) as temporary:
            torch.save(tensors, temporary)


@torch.no_grad()
def start_from_data(model: Any, adapter_name: str, batches: Iterable[Any], *, loss: Callable[..., Tensor]) -> None:
    """CorDA as a run starts it."""
    layers, config = frozen_of(model, adapter_name), model.peft_config[adapter_name]
    device = device_of(layers)

    def look(see: Callable[[str, Tensor], None]) -> None:
        for batch in islice(batches, BATCHES):
            here = on_device(batch, device)
            with observing(layers, lambda name, x, batch=here: see(name, rows_of(x, batch))):  # type: ignore[misc]
                loss(model, here)

    with as_base(model):
        _learn(layers, config, look)
    start.from_learnt(model, adapter_name, layers)
