"""EVA (Paischer et al., 2024), https://arxiv.org/abs/2410.07170: A starts as the directions in which a layer's inputs
vary most, and ranks go to the layers whose directions explain most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import ConfigError, StateError, TrainingError
from adapterkit.given import check_mapping
from adapterkit.injection.lookup import check_is_adapted
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.methods.lora.observe import as_base, device_of, frozen_of, in_mode, observing, on_device, targets_of
from adapterkit.methods.lora.pca import Directions
from adapterkit.targets.matching import suffixes

_LONGEST = 10_000  # batches until directions that do not settle are given up


def positions_with_labels(batch: Any, config: LoraConfig) -> Tensor:
    """Where the tokens of a batch are that count, ``(tokens, 2)``."""
    positions: Tensor = _counted(batch, config).nonzero()
    return positions


def _counted(batch: Any, config: LoraConfig) -> Any:
    """Which tokens of a batch count, ``(rows, columns)``: those that are no padding and, if so set, have a label."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    settings = config.eva_config
    if settings and settings.use_label_mask and batch.get("labels") is not None and batch["labels"].shape == mask.shape:
        mask = mask & (batch["labels"] != settings.label_mask_value)
    return mask


def rows_at(x: Any, positions: Any, name: str) -> Tensor:
    """The rows of a layer's input ``(rows, tokens, features)`` at some positions; all of them where the input has
    another shape."""
    whole: Tensor = x[0] if isinstance(x, tuple | list) else x
    if isinstance(positions, Tensor) and whole.ndim == 3:
        return whole[positions.T.unbind()]
    return whole.reshape(-1, whole.shape[-1])


def call_with(model: nn.Module, batch: Any) -> Any:
    """The model's forward on a batch of keyword inputs."""
    return model(**batch)


@torch.no_grad()
def get_eva_state_dict(
    model: Any,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: Callable[[Any, Any], Any] = call_with,
    prepare_model_inputs_fn: Callable[[Any, LoraConfig], Any] | None = positions_with_labels,
    prepare_layer_inputs_fn: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]] | None = rows_at,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """The first factor of every linear target, ``(rank, in_features)``, by module name; ranks are redistributed.

    Args:
        model: an adapted model, or a plain one with ``peft_config``.
        dataloader: batches; gone through again until every direction that is needed has settled.
        peft_config: taken instead of the adapter's.
        forward_fn: calls the model on a batch.
        prepare_model_inputs_fn: from batch and config to what ``prepare_layer_inputs_fn`` is given; None gives the
            batch.
        prepare_layer_inputs_fn: from a layer's input, that, and the layer's name to rows ``(n, in_features)``; a
            mapping has one for each name; None takes all rows.
        adapter_name: the adapter of an adapted model.
        gather_distributed_inputs: see the rows of all processes.
        show_progress_bar: accepted for PEFT's sake; nothing is shown.

    Raises:
        ConfigError: there is no config, or no batch.
        TrainingError: directions do not settle.
    """
    adapted = hasattr(model, "peft_config")
    if adapted and peft_config is None:
        model.base_model.require_config([adapter_name], "get_eva_state_dict")
    config = peft_config or (model.peft_config[adapter_name] if adapted else None)
    if config is None:
        raise ConfigError("get_eva_state_dict needs peft_config where the model has no adapter")
    layers = frozen_of(model, adapter_name) if adapted else targets_of(model, config)
    search = _Search(layers, config, prepare_model_inputs_fn, prepare_layer_inputs_fn, gather_distributed_inputs)
    if adapted:
        with as_base(model):
            return search.run(model, dataloader, forward_fn)
    with in_mode(model, training=False):
        return search.run(model, dataloader, forward_fn)


class _Search:
    """The directions of all layers; layers with the same input share theirs."""

    def __init__(
        self, layers: Mapping[str, nn.Module], config: LoraConfig, prepare: Any, rows: Any, gather: bool
    ) -> None:
        self.layers, self.config, self.prepare, self.rows, self.gather = layers, config, prepare, rows, gather
        rho = config.eva_config.rho if config.eva_config else 1.0
        self.ranks = {name: config.at(name).r for name in layers}
        self.most = {name: round(rank * rho) for name, rank in self.ranks.items()}
        self.leader: dict[str, str] = {}
        self.found: dict[str, Directions] = {}

    def run(self, model: nn.Module, batches: Iterable[Any], forward: Callable[[Any, Any], Any]) -> dict[str, Tensor]:
        device = device_of(self.layers)
        first = next(iter(batches), None)
        if first is None:
            raise ConfigError("EVA: there are no batches to look at")
        self._group(model, on_device(first, device), forward)
        ranks = dict(self.most)
        for count, batch in enumerate(cycle(batches)):
            if all(bool(found.settled[: ranks[name]].all()) for name, found in self.found.items()):
                break
            if count == _LONGEST:
                raise TrainingError(f"EVA: directions have not settled after {count} batches; lower eva_config.tau")
            self._see(model, on_device(batch, device), forward, ranks)
            if all(found.directions is not None for found in self.found.values()):
                ranks = self._distributed()
        return {name: self._factor(name, rank) for name, rank in ranks.items()}

    def _group(self, model: nn.Module, batch: Any, forward: Callable[[Any, Any], Any]) -> None:
        """Find which layers are given the same input, and how many directions they need."""
        prepared, prints = self._prepared(batch), {}

        def see(name: str, x: Tensor) -> None:
            prints[name] = hash(self._rows(x, prepared, name).cpu().contiguous().view(torch.uint8).numpy().tobytes())

        with observing(self.layers, see):
            forward(model, batch)
        leaders: dict[int, str] = {}
        self.leader = {name: leaders.setdefault(prints[name], name) for name in self.layers if name in prints}
        for name, leader in self.leader.items():
            same = [other for other, its in self.leader.items() if its == leader]
            self.most[name] = max(self.most[other] for other in same)
        tau = self.config.eva_config.tau if self.config.eva_config else 0.99
        self.found = {leader: Directions(self.most[leader], tau) for leader in dict.fromkeys(self.leader.values())}

    def _prepared(self, batch: Any) -> Any:
        return self.prepare(batch, self.config) if self.prepare is not None else batch

    def _rows(self, x: Tensor, prepared: Any, name: str) -> Tensor:
        take = self.rows.get(name) if isinstance(self.rows, Mapping) else self.rows
        return rows_at(x, None, name) if take is None else take(x, prepared, name)

    def _see(self, model: nn.Module, batch: Any, forward: Callable[[Any, Any], Any], ranks: Mapping[str, int]) -> None:
        prepared = self._prepared(batch)

        def see(name: str, x: Tensor) -> None:
            rows = self._rows(x, prepared, name)
            self.found[name].update(_of_all_processes(rows) if self.gather else rows)

        open_ = {n: self.layers[n] for n, f in self.found.items() if not bool(f.settled[: ranks[n]].all())}
        with observing(open_, see):
            forward(model, batch)

    def _distributed(self) -> dict[str, int]:
        """The ranks: one for each of the directions that explain most, as many as there are ranks altogether."""
        names = [*self.found, *(name for name, leader in self.leader.items() if name != leader)]
        candidates = [(name, share) for name in names for share in self.found[self.leader[name]].shares]
        order = torch.stack([share for _, share in candidates]).argsort(descending=True)
        counts = Counter(candidates[i][0] for i in order[: sum(self.ranks.values())].tolist())
        ranks = {name: counts.get(name, 0) for name in names}
        for name, leader in self.leader.items():
            if ranks[leader] < ranks[name]:  # whoever looks for the directions looks for as many as any
                ranks[leader], ranks[name] = ranks[name], ranks[leader]
        return ranks

    def _factor(self, name: str, rank: int) -> Tensor:
        found = self.found[self.leader[name]]
        directions: Any = found.directions
        if self.config.eva_config is not None and self.config.eva_config.whiten:
            directions = directions / found.strengths[:, None].sqrt()
        return directions[:rank].float().clone()  # type: ignore[no-any-return]


def _of_all_processes(rows: Tensor) -> Tensor:
    from accelerate import PartialState
    from accelerate.utils import gather, pad_across_processes

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return rows
    counts = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    every = gather(pad_across_processes(rows.contiguous())).chunk(PartialState().num_processes)
    return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])


@torch.no_grad()
def initialize_lora_eva_weights(
    model: Any,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    forward_fn: Callable[[Any, Any], Any] = call_with,
    prepare_model_inputs_fn: Callable[[Any, LoraConfig], Any] | None = positions_with_labels,
    prepare_layer_inputs_fn: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]] | None = rows_at,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> None:
    """Start an adapter with ``init_lora_weights="eva"``. Layers whose rank becomes 0 are adapted no more.

    Args:
        model: the adapted model.
        dataloader: batches to look at.
        eva_state_dict: what `get_eva_state_dict` gave; None computes it.
        forward_fn: as for `get_eva_state_dict`; so are the others.

    Raises:
        ConfigError: the adapter starts otherwise, or neither batches nor factors are given.
        StateError: several adapters are active.
    """
    check_is_adapted(model)
    if eva_state_dict is not None:
        check_mapping(eva_state_dict, "eva_state_dict", "a mapping of tensors by layer")
    model.base_model.require_config([adapter_name], "initialize_lora_eva_weights")
    config = model.peft_config[adapter_name]
    if config.init_lora_weights != "eva":
        raise ConfigError(f"adapter {adapter_name!r} has init_lora_weights={config.init_lora_weights!r}, not 'eva'")
    if len(model.active_adapters) > 1:
        raise StateError(f"EVA starts one adapter, and these are active: {model.active_adapters}")
    if eva_state_dict is None:
        if dataloader is None:
            raise ConfigError("initialize_lora_eva_weights needs dataloader or eva_state_dict")
        eva_state_dict = get_eva_state_dict(
            model, dataloader, None, forward_fn, prepare_model_inputs_fn, prepare_layer_inputs_fn, adapter_name,
            gather_distributed_inputs, show_progress_bar,
        )  # fmt: skip
    _take(model.base_model, adapter_name, config, eva_state_dict)


def _take(tuner: Any, adapter_name: str, config: LoraConfig, found: Mapping[str, Tensor]) -> None:
    """Give every adapter its factor and rank, and write the ranks into the config."""
    adjust = config.eva_config is None or config.eva_config.adjust_scaling_factors
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, first in found.items():
        target = name.removeprefix("base_model.model.")
        at, rank = config.at(target), len(first)
        if rank == 0:
            tuner.drop(adapter_name, target)
            continue
        ranks[target] = rank
        alphas[target] = at.lora_alpha * rank / at.r if adjust and rank != at.r else at.lora_alpha
        _start_with(tuner.layers[target], adapter_name, at, first, alphas[target])
    chosen = [target for target, layer in tuner.layers.items() if adapter_name in layer.adapters]
    changes = {
        "target_modules": suffixes(chosen, tuner.names),
        "rank_pattern": {target: rank for target, rank in ranks.items() if rank != config.r},
        "alpha_pattern": {target: alpha for target, alpha in alphas.items() if alpha != config.lora_alpha},
    }
    tuner.configs[adapter_name] = config.model_copy(update=changes)
    tuner.gradients.forget(adapter_name)


def _start_with(layer: Any, name: str, config: LoraConfig, first: Tensor, alpha: float) -> None:
    old = layer.adapters[name]
    a = old.factors()[0]
    new = type(old)(config.model_copy(update={"r": len(first), "lora_alpha": alpha}), old.layer)
    new.to(device=first.device if a.is_meta else a.device, dtype=a.dtype)
    new.factors()[0].copy_(first)
    new.settle()
    layer.adapters[name] = new.requires_grad_(a.requires_grad).train(old.training)


def start_from_data(model: Any, adapter_name: str, batches: Iterable[Any], *, loss: Callable[..., Tensor]) -> None:
    """EVA as a run starts it. Layers whose inputs are not the batch's tokens, as a decoder's are not, show all rows."""

    def tokens(batch: Any, config: LoraConfig) -> Any:
        return _counted(batch, config) if "input_ids" in batch else None

    def rows(x: Tensor, mask: Tensor | None, name: str) -> Tensor:
        return x[mask] if mask is not None and mask.shape == x.shape[:-1] else rows_at(x, None, name)

    initialize_lora_eva_weights(model, batches, None, loss, tokens, rows, adapter_name)
