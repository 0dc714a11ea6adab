"""A trial of a sweep ends with the very adapter that it ends with in a process of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from adapterkit.sweep.trial import Trial, read_trials
from tests.commandline import in_new_process

RUN = ["-W", "ignore", "-m", "adapterkit"]
TRIALS = ["+method=lora,hra", "method.modules_to_save=[pooler]", "seed=0,1", "trainer.bf16=true,false"]
SHORT = ["task=seq_cls", "trainer=fast", "trainer.max_steps=6", "data=sample", "trainer.use_cpu=true"]


def adapter(directory: Path) -> str:
    return hashlib.sha256((directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def alone(trial: Trial, directory: Path) -> Path:
    """Run a trial's overrides by themselves."""
    overrides = [override.lstrip("+") for override in trial.overrides if not override.startswith("method=")]
    method = f"+method={trial.values['method']}"
    ran = in_new_process(*RUN, method, *overrides, f"hydra.run.dir={directory}", cwd=directory.parent)
    assert ran.returncode == 0, ran.stderr
    return directory


@pytest.mark.slow
def test_trials_of_one_process_equal_processes_to_the_bit(tmp_path: Path) -> None:
    swept = in_new_process(*RUN, "-m", *TRIALS, *SHORT, f"hydra.sweep.dir={tmp_path}/sweep", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    trials = read_trials(tmp_path / "sweep")
    for trial in trials:
        directory = alone(trial, tmp_path / f"alone-{trial.number}")
        assert adapter(trial.directory) == adapter(directory), trial.values
        assert trial.summary["metrics"] == json.loads((directory / "summary.json").read_text())["metrics"]
    assert len({adapter(trial.directory) for trial in trials}) == 8
