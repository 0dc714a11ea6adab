"""A saved adapter on its base model, in a run or without one. `adapterkit.train.reload` is for runs alone, whose
configuration says all that an adapter's leaves open: labels, padding, types."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterkit.auto import TRUSTED, base_class, grow_embeddings
from adapterkit.checkpoint.identity import OtherBaseWarning
from adapterkit.config.base import PeftConfig
from adapterkit.config.choices import BUILTIN_PREFIX
from adapterkit.config.run import ModelConfig
from adapterkit.config.task import TaskConfig
from adapterkit.errors import CapabilityError, CheckFailedError, ConfigError, first_line
from adapterkit.model import PeftModel, wrapper_for
from adapterkit.ondisk.names import plain
from adapterkit.ondisk.reading import AdapterFiles
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
            return _alone(found.files, base)
        settings = found.settings
        if base is not None:
            changes = {"name_or_path": base, "revision": None, "subfolder": None}
            model = ModelConfig.model_validate({**settings.model.model_dump(), **changes})
            settings = settings.model_copy(update={"model": model})
        return Loaded(*load_run(found.run, config=settings, adapter=found.files.directory))
    except ConfigError as error:
        if base is not None:
            raise
        raise ConfigError(f"{error}; --base=... says where else the base is") from error


def _alone(files: AdapterFiles, base: str | None) -> Loaded:
    config, folder = files.config, files.directory
    name = base or config.base_model_name_or_path
    if not name:
        raise ConfigError(f"{folder}: its config names no base model")
    source = ModelConfig(name_or_path=name, revision=None if base else config.revision)
    if config.task_type is not None:
        task = tasks[config.task_type.lower()]()
        made = _base(files, source, task)
        tokenizer = _tokenizer(folder, name) or (
            load_tokenizer(source, task) if name.startswith(BUILTIN_PREFIX) else None
        )
    else:
        made, tokenizer = _by_class(config, source), _tokenizer(folder, name)
    if not name.startswith(BUILTIN_PREFIX):
        grow_embeddings(made, folder, {})
    model = wrapper_for(config).from_pretrained(made, folder)
    return Loaded(model.eval(), tokenizer)


def matched(files: AdapterFiles, base: str, *, task: str | None = None, device: str | None = None) -> PeftModel:
    """The adapter on the very base that it was made on: to check it, or to compute with its weights. Unlike `load` it
    takes the base's name as given, needs no values on the meta device, and refuses another base.

    Args:
        files: the adapter; its head says how many classes there are.
        base: a directory, a Hub id, or a built-in model.
        task: whose head the base has; by default what the adapter's config says, else ``causal_lm``.
        device: ``"meta"`` loads neither's values.

    Raises:
        ConfigError: there is no such model, or task.
        CheckpointError: the adapter does not fit it; names what is missing, unexpected or of another shape.
        CheckFailedError: it fits, and was made on another model.
    """
    name = task or (files.config.task_type or "causal_lm").lower()
    model = _base(files, ModelConfig(name_or_path=base), tasks[name].model_validate({"name": name}), device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseWarning)
        warnings.filterwarnings("ignore", "for .*copying from a non-meta parameter")  # as it is meant, with "meta"
        try:
            found: PeftModel = PeftModel.from_pretrained(model, files.directory)
        except OtherBaseWarning as warning:
            raise CheckFailedError(str(warning)) from None
    return found


def _base(files: AdapterFiles, source: ModelConfig, task: TaskConfig, *, device: str | None = None) -> PreTrainedModel:
    """The base with as many classes as the trained head of the file has."""
    bare = load_base(source, task, device="meta")
    there: Mapping[str, Any] = bare.state_dict()
    heads, options = set(task.wrapper_class().heads), {}
    for key, entry in files.header.tensors.items():
        own = there.get(plain(key))
        if own is not None and tuple(own.shape) != entry.shape and heads.intersection(key.split(".")):
            options = {"num_labels": entry.shape[0]}
            break
    return bare if device == "meta" and not options else load_base(source, task, device=device, **options)


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
