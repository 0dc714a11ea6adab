"""How AdaLoRA moves rank between layers (section 3 of the paper).

Every singular value is judged by how much the loss depends on it and on its two vectors: the product of the smoothed
sensitivity ``|p * dL/dp|`` and its smoothed uncertainty. The number that is kept over all layers falls from
``init_r`` a layer to ``target_r`` by a cubic law between step ``tinit`` and step ``total - tfinal``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from adapterkit.errors import StateError
from adapterkit.methods.adalora.adapter import AdaLoraAdapter
from adapterkit.nn.schedule import Schedule

FACTORS = ("lora_A", "lora_B", "lora_E")


@final
class RankAllocator(Schedule):
    """Sets the singular values to zero that matter least, over all layers of one adapter."""

    adapters: dict[str, AdaLoraAdapter]  # type: ignore[assignment]

    def __init__(self, config: Any, adapters: Mapping[str, AdaLoraAdapter]) -> None:
        super().__init__(config, adapters)
        self.tinit, self.tfinal, self.every, self.total = config.tinit, config.tfinal, config.deltaT, config.total_step
        self.betas, self.orth_reg_weight = (config.beta1, config.beta2), config.orth_reg_weight
        self.pattern = config.rank_pattern  # of the ranks that were there before the adapter's parameters were made
        self.start = sum(len(adapter.lora_E) for adapter in self.adapters.values())
        self.target = min(self.start, config.target_r * len(self.adapters))
        self.sensitivity: dict[str, Tensor] = {}  # "<layer>.<factor>" -> smoothed, in the shape of the factor
        self.uncertainty: dict[str, Tensor] = {}

    @override
    def begin(self, total_steps: int) -> None:
        last = self._last_allocation(total_steps)
        if last > total_steps:
            raise StateError(
                f"AdaLoRA: total_step={self.total} puts the last allocation of rank after the last of {total_steps} "
                "steps; leave total_step null, or make it that number"
            )

    @override
    @torch.no_grad()
    def step(self, step: int, total_steps: int | None) -> None:
        last = self._last_allocation(total_steps)
        if step > last:
            for adapter in self.adapters.values():
                if adapter.kept is not None:
                    adapter.keep(adapter.kept)
            return
        if step < last or not self.sensitivity:  # the last one may be the first
            self._observe()
        if step == last or (step > self.tinit and step % self.every == 0):
            self._allocate(budget(step, self.start, self.target, first=self.tinit, last=last))
        if step == last:
            self._forget()

    def _last_allocation(self, total_steps: int | None) -> int:
        total: int | None = self.total or total_steps
        if total is None:
            raise StateError("AdaLoRA needs to know the number of steps: set total_step")
        if self.tinit >= total - self.tfinal:
            raise StateError(
                f"AdaLoRA: tinit={self.tinit} and tfinal={self.tfinal} leave no step of {total} to allocate rank"
            )
        return total - int(self.tfinal)

    def _observe(self) -> None:
        """Smooth the sensitivity of every number, and how far it is from the smoothed one."""
        beta1, beta2 = self.betas
        for key, parameter in self._parameters():
            if parameter.grad is None:
                raise StateError(f"AdaLoRA: {key} has no gradient; advance after backward and before zero_grad")
            now = (parameter * parameter.grad).abs()
            mean = self.sensitivity.setdefault(key, torch.zeros_like(now))
            mean.mul_(beta1).add_(now, alpha=1 - beta1)
            spread = self.uncertainty.setdefault(key, torch.zeros_like(now))
            spread.mul_(beta2).add_((now - mean).abs_(), alpha=1 - beta2)

    def _forget(self) -> None:
        self.sensitivity.clear()
        self.uncertainty.clear()

    def _parameters(self) -> list[tuple[str, Tensor]]:
        return [(f"{layer}.{f}", getattr(adapter, f)) for layer, adapter in self.adapters.items() for f in FACTORS]

    def _allocate(self, count: int) -> None:
        """Keep the ``count`` most important singular values of all layers; equally important ones share their fate."""
        there = sum(len(adapter.lora_E) for adapter in self.adapters.values())
        if count >= there:
            return
        scores = {layer: self._scores(layer) for layer in self.adapters}
        together = torch.cat([score.float().cpu() for score in scores.values()])
        threshold = together.kthvalue(there - count).values
        for layer, adapter in self.adapters.items():
            adapter.keep(scores[layer].float() > threshold.to(scores[layer].device))

    def _scores(self, layer: str) -> Tensor:
        """The importance of each singular value of a layer and its two vectors, ``(r,)``."""
        a, b, e = (self.sensitivity[f"{layer}.{f}"] * self.uncertainty[f"{layer}.{f}"] for f in FACTORS)
        return e.flatten() + a.mean(1) + b.mean(0)

    @override
    def loss(self) -> Tensor | None:
        if not self.orth_reg_weight:
            return None
        losses = [off_orthogonal(adapter.lora_A) for adapter in self.adapters.values()]
        losses += [off_orthogonal(adapter.lora_B.T) for adapter in self.adapters.values()]
        device = losses[0].device
        together: Tensor = torch.stack([loss.to(device) for loss in losses]).mean()
        return together.mul(self.orth_reg_weight)

    @override
    def settings(self) -> dict[str, Any]:
        kept = {f"{layer}.lora_E": a.kept.tolist() for layer, a in self.adapters.items() if a.kept is not None}
        return {"rank_pattern": kept or self.pattern}

    @override
    def compact(self) -> None:
        self.pattern = self.settings()["rank_pattern"]
        self._forget()
        for adapter in self.adapters.values():
            adapter.compact()

    @override
    def state_dict(self) -> dict[str, Tensor]:
        state = {f"sensitivity.{key}": tensor for key, tensor in self.sensitivity.items()}
        state |= {f"uncertainty.{key}": tensor for key, tensor in self.uncertainty.items()}
        return state | {f"kept.{layer}": a.kept for layer, a in self.adapters.items() if a.kept is not None}

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        parameters = dict(self._parameters())
        self._forget()
        for name, held in (("sensitivity.", self.sensitivity), ("uncertainty.", self.uncertainty)):
            for key in (k.removeprefix(name) for k in state if k.startswith(name)):
                held[key] = state[name + key].to(parameters[key]).clone()
        for layer, adapter in self.adapters.items():
            adapter.kept = None
            if f"kept.{layer}" in state:
                adapter.keep(state[f"kept.{layer}"])


def budget(step: int, start: int, target: int, *, first: int, last: int) -> int:
    """How many singular values are kept at a step: ``start`` until step ``first``, ``target`` from step ``last``, and
    by a cubic law in between."""
    if step <= first:
        return start
    left = max(0.0, 1 - (step - first) / (last - first))
    return int((start - target) * left**3 + target)


def off_orthogonal(rows: Tensor) -> Tensor:
    """``||R R^T - I||`` of ``rows (r, n)``, by Frobenius; 0 if the rows are orthogonal and of length 1."""
    rows = rows.float()
    length: Tensor = torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device))
    return length
