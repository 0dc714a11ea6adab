"""The last screen of a run: what was trained, how well, how long, and how to use it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adapterkit.config.run import RunConfig
from adapterkit.train import layout

if TYPE_CHECKING:
    from adapterkit.train.evaluation import Evaluated


def show(config: RunConfig, summary: dict[str, Any], manifest: dict[str, Any], console: Console | None = None) -> None:
    """Print the screen.

    Args:
        config: the run.
        summary: what `adapterkit.train.run.run` returns.
        manifest: the content of ``manifest.json``.
        console: where to; None is the standard output.
    """
    console = console or Console()
    title = "dry run" if config.dry_run else f"{config.method.peft_type} on {manifest['base']['name']}"
    _panel(title, rows(config, summary, manifest), console)
    if not config.dry_run:
        console.print(Text(usage(config, summary), style="dim"), soft_wrap=True)


def _panel(title: str, lines: list[tuple[str, str]], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, Text(value))
    console.print(Panel(table, title=title, title_align="left", expand=False))


def show_scores(config: RunConfig, found: Evaluated, console: Console | None = None) -> None:
    """Print what an adapter is worth: the metric that it is judged by first."""
    others = {name: value for name, value in found.metrics.items() if name != found.metric}
    arrow = "higher" if found.greater_is_better else "lower"
    judged = {found.metric: f"{found.metrics[found.metric]:.4f} ({arrow} is better)"}
    lines = [
        ("data", f"{found.source}: {_sizes({found.split: found.examples})}"),
        *judged.items(),
        *((name, f"{value:.4f}") for name, value in others.items()),
    ]
    _panel(f"{config.method.peft_type} of {found.run}", lines, console or Console())


def rows(config: RunConfig, summary: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each line."""
    trainable, total = summary["trainable_parameters"], summary["all_parameters"]
    found = [
        ("trained", trained_modules(manifest["trained"])),
        ("parameters", f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)"),
        ("data", f"{manifest['data']['source']}: {_sizes(manifest['data']['examples'])}"),
    ]
    if config.dry_run:
        return found
    metric, arrow = summary["metric"], "higher" if summary["greater_is_better"] else "lower"
    found.append((metric, f"{summary['metrics'][metric]:.4f} ({arrow} is better)"))
    if metric in summary["baseline"]:
        gain = summary["metrics"][metric] - summary["baseline"][metric]
        found.append((f"  {summary['baseline_name']}", f"{summary['baseline'][metric]:.4f} (the adapter: {gain:+.4f})"))
    if f"test_{metric}" in summary["metrics"]:
        found.append(("  test split", f"{summary['metrics'][f'test_{metric}']:.4f}"))
    found.append(("time", f"{summary['seconds']:.0f} s, of which training {manifest['timings']['training']:.0f} s"))
    found.append(("adapter", f"{Path(summary['directory']) / layout.ADAPTER} ({summary['adapter_bytes']:,} bytes)"))
    return found


def _sizes(examples: dict[str, int]) -> str:
    return ", ".join(f"{size:,} {name}" for name, size in examples.items())


def trained_modules(names: list[str]) -> str:
    """Names of the modules that hold trained parameters, numbered layers counted: ``query x 12, classifier``."""
    modules = dict.fromkeys(module_of(name) for name in names)
    counts = Counter(module.rpartition(".")[2] for module in modules)
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in counts.items())


def module_of(parameter: str) -> str:
    """The adapted module that a parameter belongs to: its dotted name up to the wrapper's own parts."""
    inside = re.split(r"\.(?:adapters|modules_to_save|biases|lora_\w+|base_layer)\.", parameter)[0]
    plain = inside if inside != parameter else parameter.rpartition(".")[0]
    return plain.removeprefix("base_model.model.")


def usage(config: RunConfig, summary: dict[str, Any]) -> str:
    """Code that loads the result."""
    return (
        "\nfrom adapterkit.train import load_run\n"
        f'model, tokenizer = load_run("{summary["directory"]}")  # the base of {config.task.name}, adapted\n'
    )
