"""A saved adapter with the base model that its config names, in a run or without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterkit.auto import TRUSTED, base_class, grow_embeddings
from adapterkit.checkpoint.files import load_peft_weights
from adapterkit.config.base import PeftConfig
from adapterkit.config.choices import BUILTIN_PREFIX
from adapterkit.config.run import ModelConfig
from adapterkit.errors import CapabilityError, ConfigError, first_line
from adapterkit.model import PeftModel, wrapper_for
from adapterkit.ondisk.names import HEAD_PREFIX, PREFIX
from adapterkit.registry import tasks
from adapterkit.train.found import Found
from adapterkit.train.models import load_base, load_tokenizer, silence, whole_tokenizer
from adapterkit.train.reload import load_run


class Loaded(NamedTuple):
    """An adapted model in evaluation mode, and its tokenizer if it has one."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase | None


def load(found: Found, base: str | None = None) -> Loaded:
    """The adapter on its base.

    Args:
        found: the adapter.
        base: directory or Hub id of the base, instead of the one that was trained on.

    Raises:
        ConfigError: the base is not said, is not there, or cannot be loaded.
        CapabilityError: it is no model of transformers.
        CheckpointError: the adapter does not fit it.
    """
    try:
        if found.run is None or found.settings is None:
            return _alone(found, base)
        settings = found.settings
        if base is not None:
            changes = {"name_or_path": base, "revision": None, "subfolder": None}
            model = ModelConfig.model_validate({**settings.model.model_dump(), **changes})
            settings = settings.model_copy(update={"model": model})
        return Loaded(*load_run(found.run, config=settings, adapter=found.folder))
    except ConfigError as error:
        if base is not None:
            raise
        raise ConfigError(f"{error}; --base=... says where else the base is") from error


def _alone(found: Found, base: str | None) -> Loaded:
    config, folder = found.config, found.folder
    name = base or config.base_model_name_or_path
    if not name:
        raise ConfigError(f"{folder}: its config names no base model")
    source = ModelConfig(name_or_path=name, revision=None if base else config.revision)
    if config.task_type is not None:
        task = tasks[config.task_type.lower()]()
        bare = load_base(source, task, device="meta")
        made = load_base(source, task, **_classes(bare, folder, wrapper_for(config).heads))
        tokenizer = _tokenizer(folder, name) or (
            load_tokenizer(source, task) if name.startswith(BUILTIN_PREFIX) else None
        )
    else:
        made, tokenizer = _by_class(config, source), _tokenizer(folder, name)
    if not name.startswith(BUILTIN_PREFIX):
        grow_embeddings(made, folder, {})
    model = wrapper_for(config).from_pretrained(made, folder)
    return Loaded(model.eval(), tokenizer)


def _classes(bare: PreTrainedModel, folder: Path, heads: tuple[str, ...]) -> dict[str, Any]:
    """How many classes the trained head of a file has, where the base says otherwise."""
    there: Mapping[str, Any] = bare.state_dict()
    for key, tensor in load_peft_weights(folder).items():
        name = key.removeprefix(PREFIX).removeprefix(HEAD_PREFIX)
        own = there.get(name)
        if own is not None and own.shape != tensor.shape and not set(heads).isdisjoint(name.split(".")):
            return {"num_labels": len(tensor)}
    return {}


def _by_class(config: PeftConfig, source: ModelConfig) -> PreTrainedModel:
    """The base of an adapter that has no task, by the class that its config names."""
    loader: Any = base_class(config, TRUSTED)
    name = source.name_or_path
    if not issubclass(loader, PreTrainedModel):
        raise CapabilityError(f"its base is a {config.auto_mapping}: only models of transformers can be written")
    try:
        with silence():
            made: PreTrainedModel = loader.from_pretrained(name, revision=source.revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the base {name} cannot be loaded: {first_line(error)} (from {Path.cwd()})") from error
    return made


def _tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside an adapter, or its base's; None where there is none."""
    beside = (folder / "tokenizer_config.json").is_file()
    try:
        return whole_tokenizer(folder if beside else name)
    except (OSError, ValueError, KeyError):
        return None
