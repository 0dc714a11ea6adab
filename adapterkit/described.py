"""What can be asked of an adapted model: its adapters and their states, its base, its prompts, its counts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from adapterkit.config.base import PeftConfig
from adapterkit.errors import StateError
from adapterkit.injection.tuner import Tuner
from adapterkit.status import TunerLayerStatus, TunerModelStatus, count_parameters, get_layer_status, get_model_status


class Described(nn.Module):
    """The part of `PeftModel` that changes nothing."""

    heads: ClassVar[tuple[str, ...]] = ()
    """Names the output layer of such a model may have; it is trained and saved beside the adapter."""

    unadapted_heads: ClassVar[tuple[str, ...]] = ()
    """Those of `heads` that ``all-linear`` leaves alone even where they are not trained, as when it is injected."""

    base_model: Tuner

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The configs as they were honoured, by adapter name."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that the next forward uses, innermost first."""
        return self.base_model.active_adapters

    @property
    def active_adapter(self) -> str:
        """The active adapter.

        Raises:
            StateError: none is active, or several are.
        """
        return self._only_active()

    def _only_active(self) -> str:
        active = self.active_adapters
        if len(active) != 1:
            raise StateError(f"{len(active)} adapters are active: {active}; see active_adapters")
        return active[0]

    @property
    def active_peft_config(self) -> PeftConfig:
        """The active adapter's config.

        Raises:
            StateError: none is active, or several are, or nothing is known of its config.
        """
        name = self._only_active()
        self.base_model.require_config([name], "active_peft_config")
        return self.peft_config[name]

    @property
    def peft_type(self) -> str | None:
        """The method of the first adapter; None where there is none."""
        return next((config.peft_type for config in self.peft_config.values()), None)

    @property
    def modules_to_save(self) -> set[str] | None:
        """The modules that are trained and saved whole, over all adapters."""
        names = {name for config in self.peft_config.values() for name in config.modules_to_save or ()}
        return names or None

    def get_base_model(self) -> nn.Module:
        """The base model itself, with adapted layers in place."""
        return self.base_model.model

    def get_prompt(self, batch_size: int, task_ids: torch.Tensor | None = None) -> Any:
        """The active adapter's virtual tokens for a batch: ``(batch_size, tokens, dim)``, or a filled cache.

        Raises:
            CapabilityError: the method has no virtual tokens.
        """
        return self._prompts().get_prompt(self, batch_size, task_ids)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> torch.Tensor:
        """The table of an adapter's virtual tokens ``(tokens, width)``, as it stands in a file; on the CPU."""
        return self._prompts().table_of(self, adapter_name)  # type: ignore[no-any-return]

    @property
    def prompt_tokens(self) -> dict[str, torch.Tensor]:
        """The numbers of the rows of every prompt's table, by adapter name."""
        return self._prompts().token_numbers(self)  # type: ignore[no-any-return]

    @property
    def word_embeddings(self) -> nn.Module:
        """The module that embeds the base model's input."""
        return self.get_base_model().get_input_embeddings()  # type: ignore[operator, no-any-return]

    @property
    def transformer_backbone_name(self) -> str:
        """Name of the base model's backbone; empty if the base model is one itself."""
        return self._prompts().backbone_name(self.get_base_model())  # type: ignore[no-any-return]

    @staticmethod
    def _prompts() -> Any:
        from adapterkit.prompts import around

        return around

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """The numbers of trainable and of all parameters; a 4-bit parameter counts for the numbers it stores."""
        return count_parameters(self)

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """The state of every adapted layer; see `adapterkit.status`."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """The state of all adapters; see `adapterkit.status`."""
        return get_model_status(self)

    def print_trainable_parameters(self) -> None:
        """Print ``trainable params: 294,912 || all params: 109,777,152 || trainable%: 0.2686``."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    @property
    def config(self) -> Any:
        """The base model's configuration; a model that has none is of type ``custom``."""
        return getattr(self.get_base_model(), "config", {"model_type": "custom"})

    @property
    def base_model_torch_dtype(self) -> torch.dtype | None:
        """The type of the base model's numbers, where it says so."""
        return getattr(self.get_base_model(), "dtype", None)

    @property
    def cls_layer_name(self) -> str | None:
        """Name of the output layer that is trained beside the adapter; None where the task has none."""
        children = (name for name, _ in self.get_base_model().named_children())
        return next((name for name in children if name in self.heads), None)

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether the next forward uses any adapter."""
        selection = self.base_model.selection
        return selection.enabled and bool(selection.active)
