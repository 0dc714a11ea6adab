"""What must hold between the sections of a run: each misfit is an error at its own key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from adapterkit.config.task import TaskConfig
from adapterkit.errors import did_you_mean

if TYPE_CHECKING:
    from adapterkit.config.run import RunConfig


class Misfit(NamedTuple):
    """A value that does not go with the rest."""

    place: tuple[str, ...]
    value: Any
    message: str


def refuse(misfits: list[Misfit]) -> NoReturn:
    """Tell every misfit as an error of validation, at its place.

    Raises:
        ValidationError: always.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError("value_error", "{text}", {"text": misfit.message}),
            loc=misfit.place,
            input=misfit.value,
        )
        for misfit in misfits
    ]
    raise ValidationError.from_exception_data("RunConfig", details)


def misfits_of(run: RunConfig) -> Iterator[Misfit]:
    """What of a run, each section valid by itself, does not go together."""
    if isinstance(run.task, TaskConfig):
        yield from _metrics(run, run.task)


def _metrics(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """Metrics that the task does not have, where it says which it has."""
    known = (*task.measures, "loss")
    if not task.measures:
        return
    if run.sweep.metric is not None and run.sweep.metric.removeprefix("test_") not in known:
        yield Misfit(("sweep", "metric"), run.sweep.metric, _no_metric(run.sweep.metric, task.name, known))


def _no_metric(metric: str, task: str, known: tuple[str, ...]) -> str:
    return f"{task} has no such metric{did_you_mean(metric, known)} It measures {', '.join(known)}"
