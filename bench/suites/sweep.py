"""Sweeps: what is checked before the first trial, and trials of one process against a process each. CPU seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from bench.rows import Goal, Row, tried
from bench.timing import Runner

RUN = ["+method=lora", "task=seq_cls"]

STEPS = 60
"""Of a trial, for as long as a fifth of what a process of its own takes: the share that the goal was set for."""


def rows(runner: Runner) -> Iterator[Row]:
    yield from tried("validating a sweep", lambda: _validation(runner))
    yield from tried("trials in one process", lambda: _trials(*(2, 20) if runner.quick else (8, STEPS)))


def _validation(runner: Runner) -> Row:
    """One bad value, so that the sweep is refused when all of it has been checked."""
    ranks, alphas = [0, *range(1, 50)], range(1, 21)
    sweep = [f"method.r={_listed(ranks)}", f"method.lora_alpha={_listed(alphas)}"]
    alone = _seconds([*RUN, "method.r=0"], expected=2)
    seconds = _seconds(["-m", *RUN, *sweep], expected=2)
    note = f"start included: one bad run is refused after {alone:.1f} s"
    return Row.of_values(f"validating {len(ranks) * len(alphas)} trials", "s", seconds, goal=Goal(2, "ours"), note=note)


def _trials(count: int, steps: int) -> Row:
    """Of two trials no less than half can be left: the goal is that of eight."""
    values, run = [2**number for number in range(count)], [*RUN, f"trainer.max_steps={steps}"]
    with tempfile.TemporaryDirectory() as directory:
        together = _seconds(["-m", *run, f"method.r={_listed(values)}", f"hydra.sweep.dir={directory}/sweep"])
        apart = sum(_seconds([*run, f"method.r={r}", f"hydra.run.dir={directory}/{r}"]) for r in values)
    name = f"{count} trials of {steps} steps in one process, against {count} processes"
    goal = Goal(0.35) if count == 8 else None
    return Row.of_values(name, "s", together, apart, goal=goal, note="not PEFT: both ours")


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _seconds(arguments: Sequence[str], *, expected: int = 0) -> float:
    """CPU seconds of a command and all it started."""
    command = [sys.executable, "-W", "ignore", "-m", "adapterkit", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise RuntimeError(f"exit status {process.returncode} of: adapterkit {' '.join(arguments)[:200]}")
    return usage.ru_utime + usage.ru_stime
