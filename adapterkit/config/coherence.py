"""What must hold between the sections of a run: each misfit is an error at its own key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from adapterkit.config.base import PeftConfig
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
        yield from _columns(run, run.task)
        yield from _task_type(run, run.task)


def _metrics(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """Metrics that the task does not have, where it says which it has."""
    known = (*task.measures, "loss")
    if not task.measures:
        return
    chosen = run.trainer.metric_for_best_model, run.sweep.metric
    places = (("trainer", "metric_for_best_model"), "eval_"), (("sweep", "metric"), "test_")
    for value, (place, prefix) in zip(chosen, places, strict=True):
        if value is not None and value.removeprefix(prefix) not in known:
            near = did_you_mean(value, known)
            yield Misfit(place, value, f"{task.name} has no such metric{near} It measures {', '.join(known)}")


def _columns(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """Roles of columns that neither the task nor the method has."""
    inputs = run.method.row_inputs if isinstance(run.method, PeftConfig) else {}
    known = (*task.default_columns, *inputs)
    for role, column in run.data.columns.items() if task.default_columns else ():
        if role not in known:
            near = did_you_mean(role, known)
            message = f"{task.name} reads no such column{near} Columns to choose: {', '.join(known)}"
            yield Misfit(("data", "columns", role), column, message)


def _task_type(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    chosen = run.method.task_type if isinstance(run.method, PeftConfig) else None
    if chosen not in (None, task.task_type):
        message = f"does not go with task={task.name}, which sets it by itself to {task.task_type}"
        yield Misfit(("method", "task_type"), chosen, message)
