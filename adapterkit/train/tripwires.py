"""Did it train? Every trainable tensor must receive a gradient and move."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from adapterkit.errors import CheckFailedError

_NAMES_SHOWN = 8
_WHOLE = ".modules_to_save."


@final
class MovementCheck(TrainerCallback):
    """Fails a run whose adapter does not move.

    After ``steps`` optimizer steps every trainable tensor must have received a gradient that is not zero (a tensor
    behind one that starts at zero, as LoRA's A is, receives its first one a step later), and something must have moved.
    At the end every tensor must have received one and have moved: only then, because a low rate during warm-up is
    less than the resolution of half-precision numbers. In a run shorter than ``steps``, something must have moved, and
    the loss must depend on every tensor: its gradients may be zero, and of an expert's there may be none as long as
    another's of that name has one.

    Gradients are not looked at where the model is sharded (FSDP, DeepSpeed): a process has only parts of them.

    Args:
        model: the adapted model, before training.
        steps: when to look for the first time.
        sharded: whether gradients cannot be looked at.

    Raises:
        CheckFailedError: nothing is trained but modules that are saved whole, or nothing at all.
    """

    def __init__(self, model: nn.Module, *, steps: int, sharded: bool = False) -> None:
        self.steps = steps
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._require_adapter()
        self.still: dict[str, Tensor] = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        self.without_gradient = set() if sharded else set(self.parameters)
        self.unreached = set(self.without_gradient)
        self.moved = 0
        self.taken = 0

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name in list(self.without_gradient):
            gradient = self.parameters[name].grad
            if gradient is not None:
                self.unreached.discard(name)
                if bool(torch.count_nonzero(gradient)):
                    self.without_gradient.discard(name)

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.taken += 1
        self._look()
        if self.taken == self.steps:
            self._require_gradients()
            self._require_movement()

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.taken >= self.steps:
            self._require_gradients()
            if self.still:
                raise CheckFailedError(f"after {self.taken} steps these have not moved: {listed(self.still)}")
        elif self.taken:
            self._require_connection()
            self._require_movement()

    def _look(self) -> None:
        for name, before in list(self.still.items()):
            if not torch.equal(self.parameters[name].detach().cpu(), before):
                del self.still[name]
                self.moved += 1

    def _require_adapter(self) -> None:
        if all(_WHOLE in name for name in self.parameters):
            only = f" but {listed(self.parameters)}" if self.parameters else ""
            raise CheckFailedError(f"nothing is trained{only}: the adapter has no nn.Parameter")

    def _require_connection(self) -> None:
        reached = {_kind(name) for name in self.parameters.keys() - self.unreached}
        cut_off = [name for name in self.unreached if _kind(name) not in reached]
        if cut_off:
            raise CheckFailedError(
                f"after {self.taken} steps these have received no gradient: {listed(cut_off)}. "
                "The loss does not depend on them: are they used?"
            )

    def _require_gradients(self) -> None:
        if self.without_gradient:
            raise CheckFailedError(
                f"after {self.taken} steps these have received no gradient but zero: {listed(self.without_gradient)}. "
                "What is rarely used (an expert) may need a higher trainer.check_steps; anything else is not trained"
            )

    def _require_movement(self) -> None:
        if self.still and not self.moved:
            raise CheckFailedError(f"after {self.taken} steps nothing has moved: is the learning rate zero throughout?")


def _kind(name: str) -> str:
    """A parameter's name without the numbers of layers and experts."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def listed(names: Any) -> str:
    """Names in order, the first few of them."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:_NAMES_SHOWN])
    return f"{shown} and {len(ordered) - _NAMES_SHOWN} more" if len(ordered) > _NAMES_SHOWN else shown
