"""Several processes that train one adapter together, as ``torchrun`` and ``accelerate launch`` start them.

The Trainer deals out the batches and adds the gradients up. What is left to agree on is the run's directory, which has
the time in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from adapterkit import launcher
from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError
from adapterkit.train.arguments import training_arguments

T = TypeVar("T")


@contextmanager
def joined(config: RunConfig, directory: Path) -> Iterator[None]:
    """Inside the block the processes, if there are several, are the group that the Trainer uses."""
    begins = launcher.count() > 1 and not dist.is_initialized()
    if begins:
        training_arguments(config, directory, label_names=())  # which sets up devices and the group
    yield
    if begins:
        dist.destroy_process_group()


def agreed(choose: Callable[[], T]) -> T:
    """What the first process chooses, in every process.

    Raises:
        ConfigError: it could not choose.
    """
    if not dist.is_initialized():
        return choose()
    said: list[T | ConfigError | None] = [None]
    if launcher.is_first():
        try:
            said = [choose()]
        except ConfigError as error:
            said = [error]
    dist.broadcast_object_list(said)
    if isinstance(said[0], ConfigError):
        raise said[0]
    return said[0]  # type: ignore[return-value]
