"""The contract of a task: its declaration, and the wrapper it names."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import ValidationError

from adapterkit.config.task import TaskConfig
from adapterkit.registry import resolve, tasks
from adapterkit.testing.configs import declaration, needing_torch


class TaskContract:
    """Every law of a task. Set ``config``."""

    config: ClassVar[TaskConfig]

    def test_is_declared_under_its_own_name(self) -> None:
        assert tasks[self.config.name] is type(self.config)

    def test_needs_no_torch(self) -> None:
        assert declaration("task", type(self.config)) not in needing_torch()

    def test_every_field_is_described(self) -> None:
        assert not [name for name, field in type(self.config).model_fields.items() if not field.description]

    def test_round_trip(self) -> None:
        assert type(self.config).model_validate_json(self.config.model_dump_json()) == self.config
        with pytest.raises(ValidationError, match="no_such_key"):
            type(self.config).model_validate({**self.config.model_dump(), "no_such_key": 1})

    def test_names_what_is_there(self) -> None:
        import transformers

        wrapper = self.config.wrapper_class()
        assert wrapper.task_type == self.config.task_type
        assert isinstance(resolve(self.config.pipeline), type)
        assert hasattr(transformers, self.config.auto_model)
        assert self.config.default_metric
