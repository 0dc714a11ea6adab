"""The schedules of a model's active adapters: advance them, add their losses, save and restore them.

A loop that trains calls `advance` after every step of the optimizer, before gradients are set to zero; the extra loss is
added by `PeftModel.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.schedule import Schedule
from adapterkit.registry import resolve
from adapterkit.tuner import Tuner


def schedules_of(tuner: Tuner) -> dict[str, Schedule]:
    """The schedules of the active adapters whose methods have one, by adapter name; made when first asked for."""
    for name in tuner.selection.active:
        config = tuner.configs.get(name)
        if config is not None and config.schedule is not None and name not in tuner.schedules:
            parts = {target: part for target, part in tuner.parts(name) if isinstance(part, LayerAdapter)}
            own = {target: part for target, part in parts.items() if isinstance(part, config.adapter_class())}
            tuner.schedules[name] = resolve(config.schedule)(config, own)
    return {name: tuner.schedules[name] for name in tuner.selection.active if name in tuner.schedules}


def advance(tuner: Tuner, step: int, total_steps: int | None = None) -> None:
    """Advance every active schedule by one step of the optimizer; see `Schedule.step`."""
    for name, schedule in schedules_of(tuner).items():
        schedule.step(step, total_steps)
        _note(tuner, name, schedule)


def compact(tuner: Tuner) -> None:
    """Give up every parameter that the active schedules have switched off for good."""
    for schedule in schedules_of(tuner).values():
        schedule.compact()


def extra_loss(tuner: Tuner) -> Tensor | None:
    """The sum of what the active schedules add to the training loss, a scalar; None if there is nothing."""
    losses = [loss for schedule in schedules_of(tuner).values() if (loss := schedule.loss()) is not None]
    return sum(losses[1:], losses[0]) if losses else None


def with_extra_loss(tuner: Tuner, outputs: Any) -> Any:
    """A model's outputs, with the extra loss added where there is a loss."""
    if not isinstance(getattr(outputs, "loss", None), Tensor):
        return outputs
    extra = extra_loss(tuner)
    if extra is not None:
        outputs.loss = outputs.loss + extra.to(outputs.loss.device)
    return outputs


def state_of(tuner: Tuner) -> dict[str, Tensor]:
    """What `load_state` needs to go on; empty if no active adapter has a schedule."""
    return {
        f"{name}.{key}": tensor for name, schedule in schedules_of(tuner).items() for key, tensor in schedule.state_dict().items()
    }


def load_state(tuner: Tuner, state: Mapping[str, Tensor]) -> None:
    """Go on where another model's schedules were when `state_of` gave ``state``."""
    for name, schedule in schedules_of(tuner).items():
        prefix = f"{name}."
        schedule.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
        _note(tuner, name, schedule)


def _note(tuner: Tuner, name: str, schedule: Schedule) -> None:
    for field, value in schedule.settings().items():
        setattr(tuner.configs[name], field, value)
