"""What a task declares: its wrapper, its heads, how inputs grow under a prompt, and how its data is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from adapterkit.config.strict import StrictModel
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import BrokenPluginError
from adapterkit.registry import declared_as, implementation, resolve

LESS_IS_BETTER = ("loss", "perplexity", "mse", "error")
"""Words in the names of metrics of which less is better."""


def less_is_better(metric: str) -> bool:
    """Whether less of a metric is better, as its name says."""
    return any(word in metric for word in LESS_IS_BETTER)


class TaskConfig(StrictModel):
    """A task; subclass it, fix ``name`` to a `Literal`, and declare it under ``adapterkit.tasks`` by that name."""

    task_type: ClassVar[str]
    """PEFT's name, ``"SEQ_CLS"``."""

    wrapper: ClassVar[str]
    """``"package.module:Class"`` of the `PeftModel` subclass."""

    auto_model: ClassVar[str]
    """Name of the class in transformers that loads a base model for it, ``"AutoModelForSequenceClassification"``."""

    pipeline: ClassVar[str]
    """``"package.module:Class"`` of the `adapterkit.train.pipeline.Pipeline`: features, collator, metrics."""

    default_model: ClassVar[str]
    """The built-in base model used when none is named: ``"builtin:bert"``."""

    default_metric: ClassVar[str]
    """The metric by which the best checkpoint and the best trial are chosen."""

    greater_is_better: ClassVar[bool] = True
    """Whether more of `default_metric` is better."""

    measures: ClassVar[tuple[str, ...]] = ()
    """Every metric that a run can have beside its loss; empty where only a run can tell."""

    data_fields: ClassVar[frozenset[str]] = frozenset()
    """Those of `adapterkit.config.run.DataConfig.of_some_tasks` that it reads."""

    smooths_labels: ClassVar[bool] = True
    """Whether its loss may be one of smoothed labels."""

    default_columns: ClassVar[Mapping[str, str]] = {}
    """Roles of the columns to their usual names, ``{"text": "text", "label": "label"}``."""

    name: str = Field(description="Name of the task.")

    @classmethod
    def wrapper_class(cls) -> Any:
        """The class that `wrapper` names. Imports torch.

        Raises:
            BrokenPluginError: it cannot be imported, is no `PeftModel`, or states a name where names are needed; names
                the plugin.
        """
        found = implementation(cls, "wrapper", resolve("adapterkit.model:PeftModel"))
        for name in ("heads", "unadapted_heads", "shifted", "trimmed"):
            if isinstance(getattr(found, name), str):
                raise BrokenPluginError(
                    f"{declared_as(cls)}: its wrapper {cls.wrapper} has {name}={getattr(found, name)!r}: a tuple of "
                    "names is needed"
                )
        return found


def more_is_better(metric: str, trainer: TrainerConfig, task: TaskConfig) -> bool:
    """Whether more of ``metric`` is better: as set, as the task says, or by its name."""
    if trainer.greater_is_better is not None:
        return trainer.greater_is_better
    if metric == task.default_metric:
        return task.greater_is_better
    return not less_is_better(metric)
