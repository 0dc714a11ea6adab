"""The schedules of a model's adapters: advance them, add their losses, save and restore them.

A loop that trains calls `Schedules.advance` (or `PeftModel.update_and_allocate`) after every step of the optimizer,
before gradients are set to zero; `PeftModel.forward` adds the extra loss to the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from adapterkit.config.base import PeftConfig
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.schedule import Schedule
from adapterkit.nn.selection import Selection
from adapterkit.registry import referenced


class Host(Protocol):
    """What is asked of the tuner."""

    selection: Selection
    configs: dict[str, PeftConfig]

    def parts(self, name: str) -> Iterator[tuple[str, nn.Module]]: ...


class Schedules:
    """The schedules of one tuner's adapters; each is made when its adapter is active and it is first needed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._made: dict[str, Schedule] = {}

    def active(self) -> dict[str, Schedule]:
        """The schedules of the active adapters, by adapter name; methods without one have none."""
        configs = self._host.configs
        names = [n for n in self._host.selection.active if n in configs and configs[n].schedule is not None]
        for name in names:
            if name not in self._made:
                self._made[name] = self._make(name, configs[name])
        return {name: self._made[name] for name in names}

    def _make(self, name: str, config: PeftConfig) -> Schedule:
        implementation = config.adapter_class()
        parts: dict[str, LayerAdapter] = {t: p for t, p in self._host.parts(name) if isinstance(p, implementation)}
        return referenced(type(config), "schedule", str(config.schedule))(config, parts)  # type: ignore[no-any-return]

    def forget(self, name: str) -> None:
        """Drop the schedule of an adapter that is gone."""
        self._made.pop(name, None)

    def begin(self, total_steps: int) -> None:
        """Tell every active schedule the number of steps; see `Schedule.begin`."""
        for schedule in self.active().values():
            schedule.begin(total_steps)

    def advance(self, step: int, total_steps: int | None = None) -> None:
        """Advance every active schedule by one step of the optimizer; see `Schedule.step`."""
        for name, schedule in self.active().items():
            schedule.step(step, total_steps)
            self._note(name, schedule)

    def compact(self) -> None:
        """Give up every parameter that the active schedules have switched off for good; see `Schedule.compact`."""
        for schedule in self.active().values():
            schedule.compact()

    def loss(self) -> Tensor | None:
        """What the active schedules add to the training loss, a scalar; None if there is nothing."""
        losses = [loss for schedule in self.active().values() if (loss := schedule.loss()) is not None]
        return sum(losses[1:], losses[0]) if losses else None

    def add_loss(self, outputs: Any) -> Any:
        """A model's outputs, with `loss` added to theirs if they have one."""
        if not isinstance(getattr(outputs, "loss", None), Tensor):
            return outputs
        extra = self.loss()
        if extra is not None:
            outputs.loss = outputs.loss + extra.to(outputs.loss.device)
        return outputs

    def state_dict(self) -> dict[str, Tensor]:
        """What `load_state_dict` needs to go on; empty if no active adapter has a schedule."""
        states = {name: schedule.state_dict() for name, schedule in self.active().items()}
        return {f"{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the schedules were that gave ``state``."""
        for name, schedule in self.active().items():
            prefix = f"{name}."
            schedule.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
            self._note(name, schedule)

    def _note(self, name: str, schedule: Schedule) -> None:
        for field, value in schedule.settings().items():
            setattr(self._host.configs[name], field, value)
