"""A run of two processes, as `torchrun` starts them: one directory, one adapter, and the numbers of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapterkit.errors import ConfigError
from adapterkit.train import layout
from adapterkit.train.run import run
from tests.training import short_run, trained

CHANGES = {"trainer": {"per_device_train_batch_size": 8, "early_stopping_patience": 5, "max_steps": 8}}
PROGRAM = """
import os, signal, sys
from pathlib import Path

from adapterkit.train.run import run
from adapterkit.train.trainer import RunTrainer
from tests.train.test_processes import CHANGES
from tests.training import short_run

root, fatal, options = Path(sys.argv[1]), int(sys.argv[2]), dict(o.split("=") for o in sys.argv[3:])
plain = RunTrainer.training_step


def dying(self, *args, **kwargs):
    if self.state.global_step == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *args, **kwargs)


if __name__ == "__main__":
    RunTrainer.training_step = dying
    directory = root / f"at-{os.environ['RANK']}"
    directory.mkdir(parents=True, exist_ok=True)  # each at its own time, as Hydra does
    result = run(short_run("causal_lm", **CHANGES, **options), directory)
    print(result["directory"], flush=True)
"""


def two_processes(tmp_path: Path, *, fatal: int = -1, **options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = [f"{name}={value}" for name, value in options.items()]
    command = [*launched, str(tmp_path / "program.py"), str(tmp_path / "day"), str(fatal), *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that sees as many rows a step as two do."""
    directory = tmp_path_factory.mktemp("single") / "run"
    run(
        short_run("causal_lm", trainer={**CHANGES["trainer"], "per_device_train_batch_size": 16}),
        directory,
        quiet=True,
    )
    return directory


def assert_same_run(found: Path, single: Path) -> None:
    ours, theirs = trained(found), trained(single)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4, msg=name)
    losses = [json.loads((path / layout.SUMMARY).read_text())["metrics"]["loss"] for path in (found, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_are_one_run(tmp_path: Path, single: Path) -> None:
    done = two_processes(tmp_path)
    assert done.returncode == 0, done.stderr
    first = tmp_path / "day" / "at-0"
    assert [line for line in done.stdout.splitlines() if line.startswith("/")][-2:] == [str(first)] * 2
    assert [path.name for path in (tmp_path / "day").iterdir()] == ["at-0"]
    assert done.stderr.count("parameters are trained") == 1
    assert_same_run(first, single)


def test_two_processes_go_on(tmp_path: Path, single: Path) -> None:
    killed = two_processes(tmp_path, fatal=6)
    assert killed.returncode != 0
    assert str(signal.SIGKILL.name) in killed.stderr
    first = tmp_path / "day" / "at-0"
    assert layout.read_manifest(first)["status"] == "running"
    assert len(list(first.glob("checkpoints/checkpoint-4/rng_state_*.pth"))) == 2
    with pytest.raises(ConfigError, match="2 processes trained together until step 4, and 1 would go on"):
        run(short_run("causal_lm", **CHANGES, resume="auto"), first, quiet=True)
    done = two_processes(tmp_path, resume="auto")
    assert done.returncode == 0, done.stderr
    assert "going on in" in done.stderr
    assert layout.read_manifest(first)["resumed"]
    assert_same_run(first, single)
