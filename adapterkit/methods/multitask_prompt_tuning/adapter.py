"""Multitask prompt tuning: Wang et al., "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning", 2023.

https://arxiv.org/abs/2303.02861. For a row of task ``k`` the model is given ``[P * (U_k V_k); embed(x)]`` (equation 1),
with ``P`` shared by all tasks and ``U_k V_k`` of low rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import override

from adapterkit.errors import CheckpointError, ConfigError, StateError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.nn.selection import require_below
from adapterkit.prompts.words import start_from_words, text_tokens

if TYPE_CHECKING:
    from adapterkit.methods.multitask_prompt_tuning.config import MultitaskPromptTuningConfig

FACTORS = ("prefix_task_cols", "prefix_task_rows")
"""The tensors that are each task's own."""


@final
class MultitaskPromptTuningAdapter(PromptAdapter):
    """``[P * (U_k V_k); embed(x)]``; an encoder-decoder's decoder is given the second half of the tokens."""

    conditional: ClassVar[bool] = True
    in_decoder: ClassVar[bool] = True

    def __init__(self, config: MultitaskPromptTuningConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        dim, tasks, ranks = config.token_dim or 0, config.num_tasks, config.num_ranks
        count = config.num_virtual_tokens * (config.num_transformer_submodules or 1)
        self.embedding = nn.Embedding(count, dim)  # (tokens, token_dim)
        self.prefix_task_cols = nn.Parameter(0.02 * torch.randn(tasks, count, ranks))  # (tasks, tokens, ranks)
        self.prefix_task_rows = nn.Parameter(0.02 * torch.randn(tasks, ranks, dim))  # (tasks, ranks, token_dim)
        if self.embedding.weight.is_meta or config.inference_mode or config.prompt_tuning_init == "RANDOM":
            return
        if config.prompt_tuning_init == "TEXT":
            text, tokenizer = config.prompt_tuning_init_text or "", config.tokenizer_name_or_path or ""
            ids = text_tokens(text, count, tokenizer=tokenizer, options=config.tokenizer_kwargs)
            start_from_words(self.embedding, model, ids)
        else:
            self._start_from(config)

    def _start_from(self, config: MultitaskPromptTuningConfig) -> None:
        """Take over a trained prompt, with the mean of its tasks' factors or one task's."""
        source = _read(Path(config.prompt_tuning_init_state_dict_path or ""))
        task, known = config.prompt_tuning_init_task, len(source["prefix_task_cols"])
        if config.prompt_tuning_init == "EXACT_SOURCE_TASK" and task >= known:
            raise ConfigError(f"prompt_tuning_init_task={task}: the trained prompt has the tasks 0 to {known - 1}")
        taken = {"prompt_embeddings": source["prompt_embeddings"]}
        for name in FACTORS:
            if config.prompt_tuning_init == "AVERAGE_SOURCE_TASKS":
                taken[name] = source[name].mean(0, keepdim=True)
            elif config.prompt_tuning_init == "EXACT_SOURCE_TASK":
                taken[name] = source[name].narrow(0, task, 1)
            else:
                taken[name] = self.get_parameter(name).detach()
        self.load_tensors(taken)

    @override
    def tokens(self, rows: int, task_ids: Tensor | None = None) -> Tensor:
        tasks = len(self.prefix_task_cols)
        if task_ids is None:
            raise StateError(f"task_ids is missing: one of 0 to {tasks - 1} for every row")
        require_below(tasks, "task_ids", task_ids)
        task_ids = task_ids.to(self.prefix_task_cols.device)
        return self.table() * (self.prefix_task_cols[task_ids] @ self.prefix_task_rows[task_ids])


def _read(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        CheckpointError: there is no such file, or it holds no trained prompt.
    """
    place = f"prompt_tuning_init_state_dict_path: {path}"
    try:
        is_safe = path.suffix == ".safetensors"
        found = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # those of pickle and of safetensors, too
        raise CheckpointError(f"{place} cannot be read: {error}") from error
    missing = [name for name in ("prompt_embeddings", *FACTORS) if name not in found]
    if missing:
        raise CheckpointError(f"{place} holds no multitask prompt: it has {', '.join(found)}, and no {missing[0]}")
    return found
