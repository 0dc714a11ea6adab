"""Writing adapted models to files and to the Hub, and reading them back."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import nn

from adapterkit.architectures import model_path
from adapterkit.checkpoint.files import Reading, check_config, load_peft_weights, write_adapter
from adapterkit.checkpoint.identity import check_base, identity
from adapterkit.checkpoint.keys import State, parts_of
from adapterkit.checkpoint.lenient import Unmatched, made_of_what_matches, warn_of
from adapterkit.checkpoint.state import LoadResult, get_peft_model_state_dict, take_state
from adapterkit.config.base import PeftConfig, check_is_config
from adapterkit.described import Described
from adapterkit.given import DIRECTORY, check_name, check_path, names_of
from adapterkit.hub.card import write_card
from adapterkit.hub.uploading import upload
from adapterkit.injection.lookup import pattern_name
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.module import check_is_module, set_training


class Saved(Described):
    """The part of `PeftModel` that has to do with files."""

    @classmethod
    @abstractmethod
    def _wrapper(cls, config: PeftConfig) -> type[Any]:
        """The class that a saved adapter of this config is loaded as."""

    @abstractmethod
    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Make a further adapter."""

    @abstractmethod
    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""

    @abstractmethod
    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Whether adapters receive gradients."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write adapters as PEFT does: ``default`` into the directory, any other into a folder of its name.

        Args:
            save_directory: where to; made if need be.
            safe_serialization: safetensors; otherwise a pickled dict.
            selected_adapters: which ones; None takes all.
            save_embedding_layers: as for `adapterkit.checkpoint.state.get_peft_model_state_dict`.
            is_main_process: other processes write nothing.
            kwargs: ``state_dict``: values to write instead of the model's own;
                ``path_initial_model_for_weight_conversion``: an adapter as it was at its start, which is taken away
                from the one that is written; ``save_function``: accepted for the sake of accelerate's programs, and
                not called.

        Raises:
            StateError: an adapter, or its config, is unknown.
            TypeError: an unknown option.
            CheckpointError: the files cannot be written; those that were there are as before.
        """
        check_path(save_directory, "save_directory", DIRECTORY)
        names = (
            tuple(self.peft_config) if selected_adapters is None else names_of(selected_adapters, "selected_adapters")
        )
        self.base_model.require_config(names, "save_pretrained")
        if not is_main_process:
            return
        directory, given = Path(save_directory), kwargs.pop("state_dict", None)
        start = kwargs.pop("path_initial_model_for_weight_conversion", None)
        kwargs.pop("save_function", None)
        if kwargs:
            raise TypeError(f"save_pretrained has no option {', '.join(kwargs)}")
        for name in names:
            config = self.peft_config[name]
            state = get_peft_model_state_dict(self, given, name, save_embedding_layers=save_embedding_layers)
            if start is not None:
                config, state = config.adapter_class().since(config, state, load_peft_weights(start))
            else:
                self._warn_of(name, config)
            text = config.to_json(**self._base_facts(name))
            folder, facts = self._folder(directory, name), identity(self, name)
            write_adapter(folder, state, text, safe=safe_serialization, metadata=facts)
        write_card(directory, self)

    def _warn_of(self, name: str, config: PeftConfig) -> None:
        """Say what is lost where an adapter's config was changed since it was made."""
        parts = [part for _, part in self.base_model.parts(name) if isinstance(part, LayerAdapter)]
        fault = next((fault for part in parts if (fault := part.misdescribed(config))), None)
        if fault:
            warnings.warn(
                f"adapter {name!r} is saved with {fault}: loaded onto this base it computes something else. "
                "The file is good for path_initial_model_for_weight_conversion",
                UserWarning,
                stacklevel=3,
            )

    @staticmethod
    def _folder(directory: Path, name: str) -> Path:
        """Where adapter ``name`` is written: as PEFT does, ``default`` into the directory itself."""
        return directory if name == "default" else directory / name

    def _base_facts(self, name: str) -> dict[str, Any]:
        """What the file says of the base: where it comes from, or of which class it is."""
        base, config = self.get_base_model(), self.peft_config[name]
        facts: dict[str, Any] = {"base_model_name_or_path": config.base_model_name_or_path or model_path(base)}
        if config.task_type is None:
            facts["auto_mapping"] = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
        return facts

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write ``README.md`` with the metadata the Hub reads; what a person wrote in it is kept."""
        check_path(output_dir, "output_dir", DIRECTORY)
        write_card(Path(output_dir), self)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **options: Any,
    ) -> Any:
        """Save the adapters and upload them to a repository on the Hub, which is made if need be.

        Args:
            repo_id: ``"user/name"``.
            commit_message: title of the commit.
            commit_description: its text.
            private: whether a new repository is private.
            token: for the Hub; None takes the one that is stored.
            revision: branch to commit to; made if need be.
            create_pr: open a pull request instead.
            options: as for `save_pretrained`.

        Returns:
            what `huggingface_hub.HfApi.upload_folder` returns: the commit.

        Raises:
            CheckpointError: the Hub refuses, or cannot be reached.
        """
        title = commit_message or "Upload adapter"
        message: dict[str, Any] = {"commit_message": title, "commit_description": commit_description}
        where: dict[str, Any] = {"revision": revision, "create_pr": create_pr}
        return upload(
            lambda folder: self.save_pretrained(folder, **options), repo_id, token, private=private, **where, **message
        )

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = True,
        *,
        strict: bool = True,
        **options: Any,
    ) -> LoadResult:
        """Load a saved adapter beside the others. It is not activated, and no other changes.

        Args:
            model_id: directory, or repository on the Hub.
            adapter_name: what to call it; where there is one of that name and config, it is given the file's tensors.
            is_trainable: whether it receives gradients; one that is there already does as before.
            torch_device: device to read the file to.
            autocast_adapter_dtype: as for the class.
            low_cpu_mem_usage: make it on the meta device: nothing is initialised only to be overwritten.
            strict: every tensor of the file must be expected, and every expected one be there.
            options: the fields of `Reading`, and ``subfolder``, ``revision``, ``token``, ...

        Raises:
            StateError: an adapter of that name is merged.
            CheckpointError: the files cannot be read, or do not fit, or are of another config than the adapter of that
                name; the model is as before then.
        """
        check_path(model_id, "model_id")
        check_name(adapter_name)
        reading = Reading.of(options, strict=strict)
        config, known = reading.config(model_id), adapter_name in self.peft_config
        if known:
            places = [pattern_name(target, part) for target, part in self.base_model.parts(adapter_name)]
            check_config(config, self.peft_config[adapter_name], adapter_name, model_id, places)
        contents = reading.contents(model_id, torch_device)
        unmatched: Unmatched = {}
        if not known:
            config = config.model_copy(update={"inference_mode": not is_trainable})
            how = (low_cpu_mem_usage, autocast_adapter_dtype)
            _, unmatched = made_of_what_matches(lambda fit: self.add_adapter(adapter_name, fit, *how), config)
        try:
            result = self._take(contents.tensors, adapter_name, reading, is_new=not known)
        except Exception:
            if not known:
                self.delete_adapter(adapter_name)
            raise
        warn_of(unmatched, model_id)
        check_base(self, adapter_name, contents.metadata, str(model_id))
        return result

    def _take(self, state: State, name: str, reading: Reading, *, is_new: bool = True) -> LoadResult:
        """Give adapter ``name`` its tensors, and a new one its mode: dropout is for adapters that are trained."""
        mismatched = reading.ignore_mismatched_sizes
        result = take_state(self, state, name, mismatched, strict=reading.strict)
        if not is_new:
            return result
        trained = not self.peft_config[name].inference_mode
        self.set_requires_grad(name, trained)
        for _, part in parts_of(self, name).values():
            set_training(part, trained)
        return result

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = True,
        torch_device: str | None = None,
        *,
        strict: bool = True,
        **options: Any,
    ) -> Self:
        """A base model with a saved adapter, wrapped as the adapter's task says.

        Args:
            model: the base model; changed in place.
            model_id: directory, or repository on the Hub.
            adapter_name: what to call the adapter.
            is_trainable: whether it receives gradients.
            config: taken instead of the file's.
            autocast_adapter_dtype: as for the class.
            low_cpu_mem_usage: as for `load_adapter`.
            torch_device: as for `load_adapter`.
            strict: as for `load_adapter`.
            options: the fields of `Reading`, and ``subfolder``, ``revision``, ``token``, ...

        Raises:
            CheckpointError: the files cannot be read, or do not fit; the model is as before then.
        """
        check_is_module(model)
        check_path(model_id, "model_id")
        reading = Reading.of(options, strict=strict)
        config = reading.config(model_id) if config is None else config
        check_is_config(config, "config")
        contents = reading.contents(model_id, torch_device)
        config = config.model_copy(update={"inference_mode": not is_trainable})
        with trainable_as_before(model):
            make, how = cls._wrapper(config), (autocast_adapter_dtype, low_cpu_mem_usage)
            wrapped, unmatched = made_of_what_matches(lambda fit: make(model, fit, adapter_name, *how), config)
            try:
                wrapped._take(contents.tensors, adapter_name, reading)
            except Exception:
                wrapped.unload()
                raise
        warn_of(unmatched, model_id)
        check_base(wrapped, adapter_name, contents.metadata, str(model_id))
        set_training(wrapped, is_trainable)
        return wrapped  # type: ignore[no-any-return]


@contextmanager
def trainable_as_before(model: nn.Module) -> Iterator[None]:
    """If the block fails, the parameters that received gradients before it receive them again."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    except Exception:
        for parameter in trained:
            parameter.requires_grad_(True)
        raise
