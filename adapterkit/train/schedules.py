"""What the schedules of adapters need of a training: steps, their part of the loss, and a place in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapterkit.injection.schedules import Schedules

FILE = "schedules.safetensors"
"""File of a checkpoint with what schedules need to go on."""


class ScheduleSteps(TrainerCallback):
    """Advances schedules after every step of the optimizer, while the gradients are still there."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        schedules: Schedules = model.base_model.schedules
        schedules.advance(state.global_step + 1, state.max_steps)  # the step is counted after this


def add_loss(schedules: Schedules, loss: Tensor) -> Tensor:
    """A training loss that was not computed by the model itself, with what the schedules add."""
    extra = schedules.loss()
    return loss if extra is None else loss + extra.to(loss.device)


def save(schedules: Schedules, folder: Path) -> None:
    """Write what `restore` needs; nothing, if there is no schedule."""
    state = {key: tensor.contiguous() for key, tensor in schedules.state_dict().items()}
    if state:
        save_file(state, folder / FILE)


def restore(schedules: Schedules, folder: Path) -> None:
    """Go on where a checkpoint was written. Before its tensors are loaded: their shapes may follow from it."""
    schedules.load_state_dict(load_file(folder / FILE) if (folder / FILE).is_file() else {})
