"""The heat map of a sweep: its metric over two numeric axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from adapterkit.sweep.report import Report

PANELS = 6
"""So many combinations of the other axes get a panel of their own; the rest is left to the table."""

Cells = dict[tuple[float, float], float]


def heat_map(found: Report) -> Path | None:
    """Draw ``heatmap.png`` into the sweep's directory; None where fewer than two numeric axes vary.

    The two axes are the first numeric ones; each combination of the others' values is a panel. A cell of a failed
    trial is crossed out.
    """
    numeric = [axis for axis in found.axes if all(_number(t.values.get(axis)) is not None for t in found.trials)]
    if len(numeric) < 2 or found.metric is None:
        return None
    panels = _panels(found, numeric[0], numeric[1])
    values = [v for cells in panels.values() for v in cells.values() if not math.isnan(v)]
    if not values:
        return None
    return _draw(found, panels, (numeric[0], numeric[1]), (min(values), max(values)))


def _panels(found: Report, x: str, y: str) -> dict[str, Cells]:
    """Titles to cells ``{(x, y): metric}``; NaN where the trial failed, the best where several trials share a cell."""
    others = [axis for axis in found.axes if axis not in (x, y)]
    panels: dict[str, Cells] = {}
    for trial in found.trials:
        title = " ".join(f"{axis}={trial.values.get(axis, '')}" for axis in others)
        cells = panels.setdefault(title, {})
        key = (float(trial.values[x]), float(trial.values[y]))
        value = math.nan if trial.failed else trial.metric(str(found.metric))
        old = cells.get(key, math.nan)
        worse = math.isnan(old) or (value > old if found.greater_is_better else value < old)
        cells[key] = value if worse else old
    return dict(list(panels.items())[:PANELS])


def _draw(found: Report, panels: dict[str, Cells], axes: tuple[str, str], limits: tuple[float, float]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(1.2 + 4.2 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    image: Any = None
    places = figure.subplots(rows, columns, squeeze=False).flat
    for place, (title, cells) in zip(places, panels.items(), strict=False):
        image = _panel(place, cells, axes, limits)
        place.set_title(title, fontsize=9)
    for place in list(figure.axes)[len(panels) :]:
        place.set_axis_off()
    figure.colorbar(image, ax=figure.axes, label=found.metric)
    path = found.directory / "heatmap.png"
    figure.savefig(path, dpi=120)
    return path


def _panel(place: Axes, cells: Cells, axes: tuple[str, str], limits: tuple[float, float]) -> Any:
    xs, ys = sorted({x for x, _ in cells}), sorted({y for _, y in cells})
    grid = [[cells.get((x, y), math.nan) for x in xs] for y in ys]
    image = place.imshow(grid, origin="lower", aspect="auto", cmap="viridis", vmin=limits[0], vmax=limits[1])
    place.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    place.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    place.set_xlabel(axes[0])
    place.set_ylabel(axes[1])
    middle = sum(limits) / 2
    for (x, y), value in cells.items():
        text, colour = ("×", "red") if math.isnan(value) else (f"{value:.4g}", "white" if value < middle else "black")
        place.text(xs.index(x), ys.index(y), text, ha="center", va="center", color=colour, fontsize=9)
    return image


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
