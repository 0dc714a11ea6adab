"""The names of tasks and methods as enumerations, for code that prefers them to strings."""

from __future__ import annotations

from enum import StrEnum

from adapterkit.registry import methods, tasks

TaskType = StrEnum("TaskType", {name.upper(): name.upper() for name in tasks})  # type: ignore[misc]
TaskType.__doc__ = "Every installed task."

PeftType = StrEnum("PeftType", {name.upper(): name.upper() for name in methods})  # type: ignore[misc]
PeftType.__doc__ = "Every installed method."
