"""A finished run with all that it learnt of its data: what its adapter is evaluated and used by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adapterkit.config.run import RunConfig
from adapterkit.model import PeftModel
from adapterkit.registry import implementation
from adapterkit.train import layout
from adapterkit.train.columns import Roles
from adapterkit.train.found import load_config
from adapterkit.train.inputs import read_inputs
from adapterkit.train.pipeline import Pipeline
from adapterkit.train.reload import load_run
from adapterkit.train.run import with_task


class Recalled(NamedTuple):
    """A run that can go on to other data."""

    config: RunConfig
    model: PeftModel
    """In evaluation mode."""
    pipeline: Pipeline
    """As it was when the run had read its data."""
    roles: Roles
    """The columns that the run read, those of its method included."""
    manifest: Mapping[str, Any]


def recall(run: Path, config: RunConfig) -> Recalled:
    """
    Args:
        run: the run's directory.
        config: its configuration, other data and another place of the base included.

    Raises:
        ConfigError: its base cannot be loaded; or its data, where its task does not say what is learnt of them.
        CheckpointError: it has no adapter.
    """
    manifest, method, task = layout.read_manifest(run), with_task(config), config.task
    model, tokenizer = load_run(run, config=config)
    pipeline_class: type[Pipeline] = implementation(type(task), "pipeline", Pipeline)
    pipeline = pipeline_class(config.data, tokenizer)
    pipeline.row_inputs = tuple(method.row_inputs)
    if not pipeline.remember(manifest.get("learnt", {})):
        pipeline.learn(read_inputs(load_config(run), method).data)
    pipeline.fit_into(model.get_base_model(), getattr(method, "num_virtual_tokens", 0))
    roles = pipeline_class.roles(task).beside(method.row_inputs, method.peft_type)
    return Recalled(config, model, pipeline, roles, manifest)
