"""The contract of a method that changes while it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapterkit.nn.adapter import LayerAdapter


class Schedule(ABC):
    """Steers the parts of one adapter from step to step of its training.

    A method names its schedule in the class variable ``schedule`` of its config.
    """

    def __init__(self, config: Any, adapters: Mapping[str, LayerAdapter]) -> None:
        """Read what is needed off ``config``, which is not kept; ``adapters`` are the adapter's parts by layer name."""
        self.adapters = dict(adapters)

    def begin(self, total_steps: int) -> None:
        """Hear before the first step how many there are going to be.

        Raises:
            StateError: they are too few.
        """
        return

    @abstractmethod
    def step(self, step: int, total_steps: int | None) -> None:
        """Go on, after the optimizer's step and before gradients are set to zero.

        Args:
            step: the number of the optimizer's step, from 0.
            total_steps: how many there are going to be; None if only the config can say.

        Raises:
            StateError: there are no gradients, or the number of steps is not known or too small.
        """

    def loss(self) -> Tensor | None:
        """What is added to the training loss, a scalar, or None."""
        return None

    def settings(self) -> dict[str, Any]:
        """The config's fields that the schedule has set by now."""
        return {}

    def compact(self) -> None:
        """Give up parameters that are switched off for good. Optimizers made before hold the old ones."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """What `load_state_dict` needs to go on where this one is, the adapter's own tensors aside."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another one was when it gave ``state``."""
        return
