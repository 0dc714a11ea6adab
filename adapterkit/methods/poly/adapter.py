r"""Polytropon (Ponti et al., 2022), https://arxiv.org/abs/2202.13914, and its multi-head routing (Caccia et al., 2022),
https://arxiv.org/abs/2211.03831.

.. math:: y = W x + \frac{1}{r} B_t A_t x, \quad A_t = \sum_s \alpha_{ts} A_s, \quad B_t = \sum_s \alpha_{ts} B_s

``t`` is the row's task, and ``α_t`` its share in every skill ``s``: the task's logits through a sigmoid, normalised; in
training a relaxed Bernoulli variable is drawn in the sigmoid's place. The factors are mixed first and applied then. For
4 skills of rank 8 and 10 tasks on a 768 x 768 layer: 49,192 trained numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions.relaxed_bernoulli import RelaxedBernoulli
from typing_extensions import override

from adapterkit.errors import CapabilityError, StateError
from adapterkit.methods.poly.config import PolyConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.forms import RowForm
from adapterkit.nn.module import Module
from adapterkit.nn.selection import require_below
from adapterkit.nn.view import LayerView


class Router(Module):
    """Every task's shares in the skills, for each split."""

    def __init__(self, config: PolyConfig) -> None:
        super().__init__()
        self.splits = config.n_splits
        self.module_logits = nn.Parameter(torch.empty(config.n_tasks, config.n_splits * config.n_skills))
        # (tasks, splits * skills)
        nn.init.uniform_(self.module_logits, -1e-3, 1e-3)

    def forward(self, task_ids: Tensor) -> Tensor:
        """``(rows,)`` to ``(rows, splits, skills)``, which sum to 1 over the skills."""
        logits = self.module_logits[task_ids].reshape(len(task_ids), self.splits, -1)
        shares = logits.sigmoid()
        if self.training:
            drawn = RelaxedBernoulli(
                logits.new_ones(()), logits=logits, validate_args=False
            )  # checks wait for a device
            shares = drawn.rsample()
        return normalised(shares, -1)


@final
class PolyAdapter(LayerAdapter):
    """``y + B_t A_t x / r`` for the task ``t`` of each row."""

    mergeable = False  # which weight it is depends on the row

    def __init__(self, config: PolyConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        splits, skills, self.r, self.tasks = config.n_splits, config.n_skills, config.r, config.n_tasks
        if layer.in_features % splits or layer.out_features % splits:
            sizes = f"{layer.in_features} inputs and {layer.out_features} outputs"
            raise CapabilityError(f"n_splits={splits} does not divide a layer of {sizes}")
        inputs, outputs = layer.in_features // splits, layer.out_features // splits
        self.poly_lora_A = nn.Parameter(torch.empty(splits, skills, inputs, self.r))  # (splits, skills, in / splits, r)
        self.poly_lora_B = nn.Parameter(torch.zeros(splits, skills, self.r, outputs))  # (..., r, out / splits)
        self.poly_router = Router(config)
        nn.init.uniform_(self.poly_lora_A, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        if not config.init_weights:
            nn.init.uniform_(self.poly_lora_B, -1 / math.sqrt(self.r), 1 / math.sqrt(self.r))

    @override
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        shares = self.poly_router(task_ids(self.layer, self.tasks, x))
        a = torch.einsum("bqs,qsdr->bqdr", shares, self.poly_lora_A).flatten(1, 2)  # (rows, in_features, r)
        b = torch.einsum("bqs,qsrd->brqd", shares, self.poly_lora_B).flatten(2)  # (rows, r, out_features)
        rows = x.reshape(len(x), -1, x.shape[-1])
        update = rows @ a.to(x.dtype) @ (b / self.r).to(x.dtype)
        return y + update.reshape(y.shape).to(y.dtype)

    @override
    def row_form(self, dtype: torch.dtype) -> RowForm | None:
        if self.poly_router.training:
            return None
        a, b = self.poly_lora_A.mT.flatten(1, 2), self.poly_lora_B.flatten(1, 2) / self.r
        tensors = (a.to(dtype), b.to(dtype), self.poly_router.module_logits.to(dtype))
        return RowForm(tensors, on_output=RowsMixed(self.layer, self.tasks, self.poly_router.splits))


@dataclass(frozen=True)
class RowsMixed:
    """Rows that have adapters of their own, all of one layer."""

    layer: LayerView
    tasks: int
    splits: int

    def __call__(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, logits: Tensor) -> Tensor:
        """``y + B_t A_t x / r``. The inputs go through all skills, each with its share: as much to read as the factors
        have, and nothing of their size to write.

        Args:
            y: ``(rows, tokens, out_features)``.
            x: ``(rows, tokens, in_features)``.
            a: ``(rows or 1, splits, skills * r, in_features / splits)``.
            b: ``(rows or 1, splits, skills * r, out_features / splits)``, over ``r``.
            logits: ``(rows or 1, tasks, splits * skills)``.
        """
        (rows, tokens, _), ids = x.shape, task_ids(self.layer, self.tasks, x)
        own = logits.expand(rows, -1, -1)[torch.arange(rows, device=x.device), ids]
        shares = normalised(own.reshape(rows, self.splits, 1, -1, 1).sigmoid(), 3)  # (rows, splits, 1, skills, 1)
        low = x.reshape(rows, tokens, self.splits, -1).transpose(1, 2) @ a.mT  # (rows, splits, tokens, skills * r)
        mixed = (low.view(*low.shape[:3], shares.shape[3], -1) * shares).sum((1, 3))  # (rows, tokens, r)
        update = (mixed[:, None, :, None] * shares).flatten(3) @ b  # (rows, splits, tokens, out / splits)
        return y + update.transpose(1, 2).flatten(2)


def normalised(shares: Tensor, dim: int) -> Tensor:
    """Shares that sum to 1 along ``dim``."""
    return shares / (shares.sum(dim, keepdim=True) + 1e-12)


def task_ids(layer: LayerView, tasks: int, x: Tensor) -> Tensor:
    """The task of each row of ``x``, ``(rows,)``.

    Raises:
        StateError: they are not given, or not as many as rows, or one is no task.
    """
    given = layer.inputs.get("task_ids")
    if given is None:
        if tasks > 1:
            raise StateError(f"forward needs task_ids, one of 0 to {tasks - 1} for every row")
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    ids = given.to(x.device)
    if len(x) % len(ids):
        raise StateError(f"task_ids has {len(ids)} entries for a layer's input of {len(x)} rows")
    require_below(tasks, "task_ids", ids)
    return ids.repeat_interleave(len(x) // len(ids))
