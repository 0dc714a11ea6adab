"""Settings of prompt tuning."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from adapterkit.config.prompt import WordPromptConfig
from adapterkit.config.strict import Choice


class PromptTuningInit(StrEnum):
    """The values of `PromptTuningConfig.prompt_tuning_init`."""

    RANDOM = "RANDOM"
    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"


class PromptTuningConfig(WordPromptConfig):
    """Prompt tuning (Lester et al., 2021), https://arxiv.org/abs/2104.08691: learnt embeddings before the input's."""

    adapter: ClassVar[str] = "adapterkit.methods.prompt_tuning.adapter:PromptTuningAdapter"
    learning_rate: ClassVar[float] = 3e-2

    peft_type: Annotated[Literal["PROMPT_TUNING"], Choice] = Field("PROMPT_TUNING", description="Name of the method.")
    prompt_tuning_init: Annotated[Literal["RANDOM", "TEXT", "SAMPLE_VOCAB"], Choice] = Field(
        "RANDOM",
        description="How the virtual tokens start: RANDOM (normal values), TEXT (the words of a text) or SAMPLE_VOCAB "
        "(random words).",
    )
