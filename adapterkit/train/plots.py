"""Pictures of a run: its loss, and the metric that chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapterkit.files import replacing

Points = list[tuple[float, float]]


def draw(entries: Sequence[dict[str, Any]], directory: Path, *, metric: str, baseline: float | None) -> list[Path]:
    """Write ``loss.png`` and ``<metric>.png`` from the log of metrics; a picture without points is left out.

    Args:
        entries: entries of ``metrics.jsonl``.
        directory: where to.
        metric: name of the metric, without ``eval_``.
        baseline: what it is without training; drawn as a line.
    """
    losses = {"training": points(entries, "loss"), "validation": points(entries, "eval_loss")}
    scores = {"validation": points(entries, f"eval_{metric}")}
    pictures = [(directory / "loss.png", losses, "loss", None), (directory / f"{metric}.png", scores, metric, baseline)]
    written = []
    for path, lines, name, level in pictures:
        shown = {label: values for label, values in lines.items() if values}
        if shown and path not in written:
            _picture(path, shown, name, level)
            written.append(path)
    return written


def points(entries: Sequence[dict[str, Any]], key: str) -> Points:
    """Step and value of every entry that has ``key``."""
    return [(entry["step"], entry[key]) for entry in entries if key in entry]


def _picture(path: Path, lines: dict[str, Points], name: str, level: float | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, values in lines.items():
        steps, numbers = zip(*values, strict=True)
        axes.plot(steps, numbers, marker="." if len(steps) < 50 else "", label=label)
    if level is not None:
        axes.axhline(level, color="grey", linestyle="--", label="baseline")
    axes.set(xlabel="step", ylabel=name)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        canvas.print_figure(temporary, format="png", dpi=120)
