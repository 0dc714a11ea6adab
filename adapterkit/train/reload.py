"""A finished run, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from adapterkit.config.run import ModelConfig, RunConfig
from adapterkit.model import PeftModel
from adapterkit.registry import implementation
from adapterkit.train import layout
from adapterkit.train.found import adapter_of, from_here, load_config
from adapterkit.train.models import load_base, load_tokenizer, use_padding_of
from adapterkit.train.pipeline import Pipeline


class LoadedRun(NamedTuple):
    """The adapted model, in evaluation mode, and the tokenizer of its base."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase


def load_run(run: str | Path, *, config: RunConfig | None = None, adapter: Path | None = None) -> LoadedRun:
    """The base model of a run with the adapter that it trained.

    Args:
        run: the run's directory.
        config: taken instead of the run's own.
        adapter: directory of an adapter of the run's that is taken instead: a checkpoint.

    Raises:
        ConfigError: it is no run, or its base cannot be loaded.
        CheckpointError: the run has no adapter.
    """
    if config is None:
        config = load_config(run)
    folder = adapter_of(run, config) if adapter is None else adapter
    manifest = layout.read_manifest(Path(run))
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
    return config.model_copy(update={key: from_here(name, directory) for key, name in given.items() if name})
