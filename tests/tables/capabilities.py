"""What each method can do, read off its classes. Every column names the law of the contract that holds it to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from adapterkit.config.base import PeftConfig
from adapterkit.config.prompt import PromptConfig
from adapterkit.registry import methods
from adapterkit.testing.claims import adapts, combines, merges
from tests.tables.parity import documented

KINDS = {
    "linear": "Linear, Conv1D",
    "embedding": "Embedding",
    "conv": "Conv1d-3d",
    "attention": "MultiheadAttention",
    "stack": "stacked experts",
    "other": "attention blocks",
}


def _layers(config: type[PeftConfig], adapter: Any) -> str:
    if issubclass(config, PromptConfig):
        return {"embeddings": "input embeddings", "cache": "keys and values"}[adapter.place]
    return ", ".join(title for kind, title in KINDS.items() if adapts(adapter, kind))


def _merges(config: type[PeftConfig], adapter: Any) -> str:
    if issubclass(config, PromptConfig):
        return "no"
    own = [kind for kind in KINDS if adapts(adapter, kind)]
    merged = [kind for kind in own if merges(adapter, kind)]
    return "all of them" if merged == own else ", ".join(KINDS[kind] for kind in merged) or "no"


def _layers_only(config: type[PeftConfig], adapter: Any) -> str:
    del adapter
    return "no" if issubclass(config, PromptConfig) else "yes"


def _on_weights(config: type[PeftConfig], adapter: Any) -> str:
    return "no weight" if issubclass(config, PromptConfig) or not adapts(adapter, "linear") else "yes"


def _checkpoints(config: type[PeftConfig], adapter: Any) -> str:
    return "no" if issubclass(config, PromptConfig) and adapter.place == "cache" else "yes"


def _combines(config: type[PeftConfig], adapter: Any) -> str:
    return "no" if issubclass(config, PromptConfig) or not combines(adapter) else "yes"


def _always(config: type[PeftConfig], adapter: Any) -> str:
    del config, adapter
    return "yes"


def _inputs(config: type[PeftConfig], adapter: Any) -> str:
    del adapter
    return ", ".join(f"`{name}`" for name in sorted(config.forward_inputs))


def _rate(config: type[PeftConfig], adapter: Any) -> str:
    del adapter
    return f"{config.learning_rate:g}"


class Column(NamedTuple):
    """A capability: its cell for a method, and the laws of layer and of prompt methods ("" where there is none)."""

    title: str
    cell: Callable[[type[PeftConfig], Any], str]
    layer_law: str = ""
    prompt_law: str = ""


COLUMNS = (
    Column("adapts", _layers, "test_other_kinds_of_layer_are_refused", "test_sizes_are_read_off_the_model"),
    Column("merges, unmerges to the bit", _merges, "test_merging_changes_nothing", "test_cannot_be_merged"),
    Column("by row", _always, "test_rows_match_separate_batches", "test_every_row_has_its_own_prompt"),
    Column("several at once", _layers_only, "test_mixing"),
    Column("quantised weight", _on_weights, "test_a_quantised_weight_is_adapted_and_merged"),
    Column(
        "gradient checkpointing",
        _checkpoints,
        "test_gradient_checkpointing",
        "test_gradient_checkpointing_is_exact_or_refused",
    ),
    Column("bf16, autocast", _always, "test_half_precision", "test_half_precision"),
    Column("one compiled graph", _always, "test_compiles_in_one_graph", "test_compiles_in_one_graph"),
    Column("meta device", _always, "test_made_on_the_meta_device_and_loaded", "test_counts_on_the_meta_device"),
    Column("weighted sums", _combines, "test_adapters_are_combined_or_refused"),
    Column("own inputs", _inputs),
    Column("learning rate of a run", _rate),
)


def table() -> str:
    lines = [f"| method | {' | '.join(column.title for column in COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name in documented():
        config = methods[name]
        adapter = config(**config.example).adapter_class()
        lines.append(f"| {name} | {' | '.join(column.cell(config, adapter) for column in COLUMNS)} |")
    return "\n".join(lines)


def laws() -> str:
    """Which law of `adapterkit.testing` stands behind which column."""
    lines = ["| column | law for layer methods | law for prompt methods |", "|---|---|---|"]
    for column in COLUMNS:
        cells = [f"`{law}`" if law else "" for law in (column.layer_law, column.prompt_law)]
        if any(cells):
            lines.append(f"| {column.title} | {' | '.join(cells)} |")
    return "\n".join(lines)
