"""What must hold between the sections of a run: each misfit is an error at its own key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from adapterkit.config.base import PeftConfig
from adapterkit.config.choices import BUILTIN_PREFIX
from adapterkit.config.task import TaskConfig
from adapterkit.errors import of_choices

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
    if isinstance(run.method, PeftConfig) and run.method.inference_mode:
        yield Misfit(("method", "inference_mode"), True, "nothing would be trained")
    if isinstance(run.task, TaskConfig):
        yield from _metrics(run, run.task)
        yield from _columns(run, run.task)
        yield from _data_fields(run, run.task)
        yield from _task_type(run, run.task)
        yield from _smoothing(run, run.task)
        yield from _built_in(run, run.task)


def _metrics(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """Metrics that the task does not have, where it says which it has."""
    known = (*task.measures, "loss")
    if not task.measures:
        return
    chosen = run.trainer.metric_for_best_model, run.sweep.metric
    places = (("trainer", "metric_for_best_model"), "eval_"), (("sweep", "metric"), "test_")
    for value, (place, prefix) in zip(chosen, places, strict=True):
        if value is not None and value.removeprefix(prefix) not in known:
            yield Misfit(place, value, f"{task.name} has no such metric{of_choices(value, known, 'It measures')}")


def _columns(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """Roles of columns that neither the task nor the method has."""
    inputs = run.method.row_inputs if isinstance(run.method, PeftConfig) else {}
    known = (*task.default_columns, *inputs)
    for role, column in run.data.columns.items() if task.default_columns else ():
        if role not in known:
            message = f"{task.name} reads no such column{of_choices(role, known, 'Columns to choose:')}"
            yield Misfit(("data", "columns", role), column, message)


def _data_fields(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """Settings of the data that other tasks read."""
    for key in run.data.of_some_tasks:
        value = getattr(run.data, key)
        if key not in task.data_fields and value != type(run.data).model_fields[key].default:
            yield Misfit(("data", key), value, f"would do nothing, as {task.name} does not read it")


def _task_type(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    chosen = run.method.task_type if isinstance(run.method, PeftConfig) else None
    if chosen not in (None, task.task_type):
        message = f"does not go with task={task.name}, which sets it by itself to {task.task_type}"
        yield Misfit(("method", "task_type"), chosen, message)


def _smoothing(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    factor = run.trainer.label_smoothing_factor
    if factor and not task.smooths_labels:
        yield Misfit(("trainer", "label_smoothing_factor"), factor, f"the loss of {task.name} cannot be smoothed")


def _built_in(run: RunConfig, task: TaskConfig) -> Iterator[Misfit]:
    """How a model is found and loaded, where it is made here."""
    name = run.model.name_or_path or task.default_model
    if not name.startswith(BUILTIN_PREFIX):
        return
    for key in ("load_in_8bit", "load_in_4bit"):
        if getattr(run.model, key):
            message = f"{name} is too small to be quantised: name another model by model.name_or_path"
            yield Misfit(("model", key), True, message)
    for key in ("revision", "subfolder", *(() if run.model.tokenizer else ("trust_remote_code",))):
        if value := getattr(run.model, key):
            message = f"would do nothing, as {name} is built in: name another model by model.name_or_path"
            yield Misfit(("model", key), value, message)
