"""`PeftMixedModel`: adapters of any layer methods on one model, several active at a time, saved and loaded as one.

::

    <directory>/mixed_adapters.json     which adapters there are, in which order, and which are active
    <directory>/<adapter name>/         each as PEFT reads it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, final

from torch import nn
from typing_extensions import override

from adapterkit.config.base import PeftConfig
from adapterkit.errors import CapabilityError, CheckpointError
from adapterkit.files import fetch, hub_options, write_text
from adapterkit.given import check_path, names_of
from adapterkit.model import PeftModel
from adapterkit.nn.module import check_is_module
from adapterkit.saved import trainable_as_before

INDEX_NAME = "mixed_adapters.json"


@final
class PeftMixedModel(PeftModel):
    """A `PeftModel` whose adapters may be of different layer methods, and of which several may be active at once.

    Active adapters are applied in the order in which they were added, the first one innermost.
    """

    @override
    def _check_method(self, config: PeftConfig) -> None:
        if config.is_prompt_learning:
            raise CapabilityError(
                f"{config.peft_type} adapts a whole model's inputs; a mixed model mixes layer methods"
            )

    @property
    @override
    def active_adapter(self) -> Any:
        """The active adapter's name, or the list of names where there are several."""
        return self.base_model.active_adapter

    @override
    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use these adapters from now on, in the order in which they were added, and train them.

        Args:
            adapter_name: one name or several.
            inference_mode: leave them frozen.

        Raises:
            StateError: an unknown name; lists the known ones.
        """
        wanted = names_of(adapter_name)
        self.base_model.require(*wanted)
        super().set_adapter([name for name in self.peft_config if name in wanted], inference_mode)

    @override
    def delete_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Remove one adapter or several.

        Raises:
            StateError: one is unknown, or merged; nothing has changed then.
        """
        names = names_of(adapter_name)
        self.base_model.require(*names)
        for name in names:
            super().delete_adapter(name)

    @override
    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write every adapter into a directory of its name, and an index; see `PeftModel.save_pretrained`."""
        super().save_pretrained(
            save_directory, safe_serialization, selected_adapters, save_embedding_layers, is_main_process, **kwargs
        )
        if not is_main_process:
            return
        selected = self.peft_config if selected_adapters is None else names_of(selected_adapters)
        names = [n for n in self.peft_config if n in selected]
        index = {"adapters": names, "active_adapters": [n for n in self.active_adapters if n in names]}
        write_text(Path(save_directory) / INDEX_NAME, json.dumps(index, indent=2))

    @staticmethod
    @override
    def _folder(directory: Path, name: str) -> Path:
        return directory / name

    @classmethod
    @override
    def from_pretrained(  # type: ignore[override]  # as in PEFT, the rest by keyword
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **options: Any,
    ) -> Self:
        """A base model with a saved mix, or with one saved adapter to which others can be added.

        Args:
            model: the base model; changed in place.
            model_id: what `save_pretrained` wrote, or the directory or repository of one adapter.
            adapter_name: what to call the adapter where it is one; a mix has its own names.
            is_trainable: whether the adapters receive gradients.
            config: taken instead of the file's where it is one adapter.
            options: as for `PeftModel.from_pretrained`.

        Raises:
            CheckpointError: the files cannot be read, or do not fit.
        """
        check_is_module(model)
        check_path(model_id, "model_id")
        index = _read_index(model_id, options)
        if index is None:
            return super().from_pretrained(model, model_id, adapter_name, is_trainable, config, **options)
        subfolder = options.pop("subfolder", None)
        folders = {name: f"{subfolder}/{name}" if subfolder else name for name in index["adapters"]}
        first, *others = index["adapters"]
        with trainable_as_before(model):
            mixed = super().from_pretrained(model, model_id, first, is_trainable, subfolder=folders[first], **options)
            try:
                for name in others:
                    mixed.load_adapter(model_id, name, is_trainable, subfolder=folders[name], **options)
            except Exception:
                mixed.unload()
                raise
        mixed.base_model.activate(index["active_adapters"])
        mixed.train(is_trainable)
        return mixed


def _read_index(model_id: str | Path, options: dict[str, Any]) -> dict[str, list[str]] | None:
    """What `PeftMixedModel.save_pretrained` wrote beside the adapters; None where there is no such file."""
    try:
        path = fetch(model_id, INDEX_NAME, **hub_options(options))
    except CheckpointError:
        return None
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        adapters, active = list(index["adapters"]), list(index["active_adapters"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no index of adapters: {error}") from error
    if not adapters or not set(active) <= set(adapters):
        raise CheckpointError(f"{path}: active_adapters {active} are not all among adapters {adapters}")
    return {"adapters": adapters, "active_adapters": active}
