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

from adapterkit.errors import CheckpointError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.prompts.words import start_from_words, text_tokens

if TYPE_CHECKING:
    from adapterkit.methods.multitask_prompt_tuning.config import MultitaskPromptTuningConfig


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
        taken = {"prompt_embeddings": source["prompt_embeddings"]}
        for name in ("prefix_task_cols", "prefix_task_rows"):
            if config.prompt_tuning_init == "AVERAGE_SOURCE_TASKS":
                taken[name] = source[name].mean(0, keepdim=True)
            elif config.prompt_tuning_init == "EXACT_SOURCE_TASK":
                taken[name] = source[name].narrow(0, config.prompt_tuning_init_task, 1)
            else:
                taken[name] = self.get_parameter(name).detach()
        self.load_tensors(taken)

    @override
    def tokens(self, rows: int, task_ids: Tensor | None = None) -> Tensor:
        if task_ids is None:
            raise ValueError("task_ids is missing: one task for every row")
        task_ids = task_ids.to(self.prefix_task_cols.device)
        return self.table() * (self.prefix_task_cols[task_ids] @ self.prefix_task_rows[task_ids])


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except OSError as error:
        raise CheckpointError(f"prompt_tuning_init_state_dict_path: {path} cannot be read: {error}") from error
