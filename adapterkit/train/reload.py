"""A finished run, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from adapterkit.config.base import PeftConfig
from adapterkit.config.run import ModelConfig, RunConfig, run_config
from adapterkit.config.strict import summarize
from adapterkit.config.task import TaskConfig
from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.model import PeftModel
from adapterkit.registry import implementation, methods, tasks
from adapterkit.train import layout
from adapterkit.train.models import load_base, load_tokenizer, use_padding_of
from adapterkit.train.pipeline import Pipeline


class LoadedRun(NamedTuple):
    """The adapted model, in evaluation mode, and the tokenizer of its base."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase


def load_config(run: str | Path) -> RunConfig:
    """The configuration of a run.

    Args:
        run: the run's directory.

    Raises:
        ConfigError: it is no run, or its configuration is not valid here.
    """
    try:
        content = layout.read_config(Path(run))
        method: type[PeftConfig] = methods[content["method"]["peft_type"].lower()]
        task: type[TaskConfig] = tasks[content["task"]["name"]]
        return run_config(method, task).model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{run}/{layout.CONFIG}: {summarize(error)}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{run} is not the directory of a run: {error}") from error


def load_run(run: str | Path) -> LoadedRun:
    """The base model of a run with the adapter that it trained.

    Args:
        run: the run's directory.

    Raises:
        ConfigError: it is no run, or its base cannot be loaded.
        CheckpointError: the run has no adapter.
    """
    config, manifest = load_config(run), layout.read_manifest(Path(run))
    folder = layout.adapter_folder(Path(run) / layout.ADAPTER, config.adapter_name)
    if not folder.is_dir():
        why = "a dry run" if config.dry_run else f"its status is {manifest.get('status', 'unknown')}"
        raise CheckpointError(f"{run} has no adapter: {why}")
    options = manifest.get("model_options", {})
    if "id2label" in options:
        options["id2label"] = {int(index): label for index, label in options["id2label"].items()}
    pipeline = implementation(type(config.task), "pipeline", Pipeline)
    where = _as_seen_from(manifest.get("process", {}).get("cwd", ""), config.model)
    tokenizer = load_tokenizer(where, config.task, **pipeline.tokenizer_options)
    base = load_base(where, config.task, **options)
    use_padding_of(base, tokenizer)
    model = PeftModel.from_pretrained(base, folder, adapter_name=config.adapter_name)
    return LoadedRun(model.eval(), tokenizer)


def _as_seen_from(directory: str, config: ModelConfig) -> ModelConfig:
    """The same model, by the paths that its relative ones were in a directory, where they are not here."""
    given = {key: getattr(config, key) for key in ("name_or_path", "tokenizer")}
    there = {key: Path(directory, name) for key, name in given.items() if name and not Path(name).is_dir()}
    return config.model_copy(update={key: str(path) for key, path in there.items() if path.is_dir()})
