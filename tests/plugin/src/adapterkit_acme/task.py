"""Sorting tickets: sequence classification under a name and a metric of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adapterkit.tasks.seq_cls.config import SeqClsConfig


class AcmeTriageConfig(SeqClsConfig):
    """Sort support tickets: what sequence classification does, with a third party's own setting."""

    name: Literal["acme_triage"] = Field("acme_triage", description="Name of the task.")  # type: ignore[assignment]
    queue: Literal["first_line", "second_line"] = Field("first_line", description="Which team's tickets.")
