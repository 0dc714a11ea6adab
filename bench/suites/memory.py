"""Memory: of loading an adapter, of merging it, and of keeping it loaded. Each measured in a fresh process."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.contenders import NAMES, load
from bench.memory import Peak, resident_bytes
from bench.models import build, targets_of, write_lora
from bench.rows import OURS, PEFT, Goal, Row
from bench.timing import Runner

MODEL = "bert-base"
WARM = 3
"""Adapters loaded before anything is measured: imports and pools are not an adapter's."""


def rows(runner: Runner) -> Iterator[Row]:
    count, layers = WARM + (3 if runner.smoke else 8 if runner.quick else 30), 4 if runner.quick else 12
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        shape = build(MODEL, "meta", num_hidden_layers=layers)
        for number in range(count):
            size = write_lora(shape, root / f"a{number}", seed=number)
        largest = max(layer.weight.numel() * layer.weight.element_size() for _, layer in targets_of(shape))
        found = {name: _in_child(name, root, count, layers) for name in NAMES}
    yield _row("peak of loading an adapter, over its file", found, "loading", size, Goal(1.1, "ours"))
    yield _row("peak of merge_and_unload, over the largest layer", found, "merging", largest, None)
    yield _row("resident for each loaded adapter, over its file", found, "resident", size, Goal(1.1, "ours"))


def _row(name: str, found: dict[str, dict[str, float]], key: str, unit: int, goal: Goal | None) -> Row:
    return Row.of_values(name, "x", found[OURS][key] / unit, found[PEFT][key] / unit, goal=goal)


def _in_child(name: str, root: Path, count: int, layers: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "bench.suites.memory", name, str(root), str(count), str(layers)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(name: str, root: Path, count: int, layers: int) -> dict[str, float]:
    """Bytes beyond what was resident before: the peaks of loading and merging, and what stays of a loaded adapter."""
    model = load(name, build(MODEL, num_hidden_layers=layers), root / "a0", "a0")
    for number in range(1, WARM):
        model.load_adapter(root / f"a{number}", f"a{number}")
    before, peak = _settled(), 0
    for number in range(WARM, count):
        peak = max(peak, _peak(lambda n=number: model.load_adapter(root / f"a{n}", f"a{n}")))
    resident = (_settled() - before) / (count - WARM)
    model.set_adapter("a0")
    return {"loading": peak, "resident": resident, "merging": _peak(model.merge_and_unload)}


def _settled() -> int:
    gc.collect()
    return resident_bytes()


def _peak(work: Callable[[], Any]) -> int:
    gc.collect()
    with Peak() as peak:
        work()
    return peak.bytes


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
