"""An interrupted run ends with the weights it would have had without the interruption, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.train import layout, resume
from adapterkit.train.reload import load_run
from adapterkit.train.run import run
from adapterkit.train.trainer import RunTrainer
from tests.training import short_run, trained

# Checkpoints fall into the middle of the second epoch of eight steps; dropout makes generators count.
CHANGES = {
    "method": {"lora_dropout": 0.2},
    "trainer": {
        "per_device_train_batch_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "num_train_epochs": 2.0,
        "max_steps": -1,
        "use_cpu": True,
    },
}
KILLED = """
import os, signal, sys
from pathlib import Path
from adapterkit.train.run import run
from adapterkit.train.trainer import RunTrainer
from tests.train.test_resume import CHANGES
from tests.training import short_run

plain = RunTrainer.training_step
def dying(self, *args, **kwargs):
    if self.state.global_step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *args, **kwargs)
RunTrainer.training_step = dying
run(short_run(**CHANGES), Path(sys.argv[1]), quiet=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same configuration that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    run(short_run(**CHANGES), directory, quiet=True)
    return directory


def the_parent(manifest: dict[str, Any]) -> dict[str, Any]:
    """The process of a manifest, if it were the one that started this one."""
    parent = psutil.Process(os.getppid())
    return {**manifest["process"], "pid": parent.pid, "began": parent.create_time()}


def assert_same_end(left: Path, right: Path) -> None:
    ours, theirs = trained(left), trained(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    before, after = (json.loads((path / layout.SUMMARY).read_text()) for path in (left, right))
    assert before["metrics"] == after["metrics"]
    steps = [[entry["step"] for entry in layout.read_metrics(path) if "eval_loss" in entry] for path in (left, right)]
    assert steps[0] == steps[1]


def interrupted(monkeypatch: pytest.MonkeyPatch, directory: Path, *, step: int, **changes: object) -> None:
    """A run that is interrupted from the keyboard in ``step``."""
    plain = RunTrainer.training_step

    def dying(self: RunTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(short_run(**{**CHANGES, **changes}), directory, quiet=True)


@pytest.mark.parametrize("again", ["second", "first"])
def test_killed_in_mid_epoch(whole: Path, tmp_path: Path, again: str) -> None:
    killed = tmp_path / "day" / "first"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(killed)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert layout.read_manifest(killed)["status"] == "running"
    half = killed / layout.CHECKPOINTS / "checkpoint-15"  # as a process leaves it that dies while writing
    half.mkdir()
    (half / "adapter_config.json").write_text("{")

    summary = run(short_run(**CHANGES, resume="auto"), tmp_path / "day" / again, quiet=True)
    assert summary["directory"] == str(killed)
    assert layout.read_manifest(killed)["resumed"]
    assert "going on in" in (killed / layout.LOG).read_text()
    assert not half.exists() or (half / resume.MARKER).exists()
    assert layout.read_manifest(killed)["status"] == "ok"
    assert_same_end(whole, killed)


def test_interrupted_at_the_end_of_an_epoch(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, tmp_path / "run", step=9)
    assert layout.read_manifest(tmp_path / "run")["status"] == "interrupted"
    run(short_run(**CHANGES, resume=str(tmp_path / "run")), tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()
    assert_same_end(whole, tmp_path / "run")


def test_interrupted_before_the_first_checkpoint(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, tmp_path / "run", step=1)
    run(short_run(**CHANGES, resume=str(tmp_path / "run")), tmp_path / "other", quiet=True)
    assert_same_end(whole, tmp_path / "run")


def test_early_stopping_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No step improves the metric by 100, so the third evaluation stops the run: one counted before, one after.
    patient = {"trainer": {**CHANGES["trainer"], "early_stopping_patience": 2, "early_stopping_threshold": 100.0}}
    interrupted(monkeypatch, tmp_path / "run", step=7, **patient)
    run(short_run(**{**CHANGES, **patient}, resume=str(tmp_path / "run")), tmp_path / "other", quiet=True)
    assert max(entry["step"] for entry in layout.read_metrics(tmp_path / "run")) == 9


def test_group_by_length_goes_on_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = {"trainer": {**CHANGES["trainer"], "train_sampling_strategy": "group_by_length"}}
    run(short_run(**{**CHANGES, **grouped}), tmp_path / "whole", quiet=True)
    interrupted(monkeypatch, tmp_path / "run", step=13, **grouped)
    run(short_run(**{**CHANGES, **grouped}, resume=str(tmp_path / "run")), tmp_path / "other", quiet=True)
    assert_same_end(tmp_path / "whole", tmp_path / "run")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


OTHER = {**CHANGES, "seed": 7}


class TestUsedDirectory:
    """Of another run: nothing of it is taken for the new one's, and nothing is lost."""

    @pytest.fixture
    def used(self, whole: Path, tmp_path: Path) -> Path:
        shutil.copytree(whole, tmp_path / "day" / "run")
        return tmp_path / "day" / "run"

    def test_a_new_run_moves_the_old_one_aside(self, used: Path, whole: Path, tmp_path: Path) -> None:
        run(short_run(**OTHER, resume="auto"), used, quiet=True)
        before = {name: content for name, content in contents(whole).items() if name != layout.LOG}
        assert contents(used / layout.EARLIER / "1") == before
        run(short_run(**OTHER), tmp_path / "alone", quiet=True)
        assert_same_end(tmp_path / "alone", used)
        assert "resumed" not in layout.read_manifest(used)

    def test_the_same_run_that_has_ended_stays_as_it_is(self, used: Path) -> None:
        before = contents(used)
        summary = run(short_run(**CHANGES, resume="auto"), used, quiet=True)
        assert summary == {**layout.read_summary(used), "directory": str(used)}
        assert contents(used) == before

    @pytest.mark.parametrize("section", ["data", "base"])
    def test_the_same_run_of_other_inputs_begins_anew(self, used: Path, section: str) -> None:
        manifest = layout.read_manifest(used)
        manifest[section]["fingerprint"] = "another"
        (used / layout.MANIFEST).write_text(json.dumps(manifest))
        run(short_run(**CHANGES, resume="auto"), used, quiet=True)
        assert layout.read_manifest(used / layout.EARLIER / "1") == manifest

    def test_killed_before_its_first_checkpoint(
        self, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupted(monkeypatch, used, step=1, **OTHER)
        with pytest.raises(CheckpointError):
            load_run(used)
        assert resume.choose(short_run(**OTHER, resume="auto"), used) == (used, None)
        run(short_run(**OTHER, resume="auto"), used, quiet=True)
        assert [path.name for path in (used / layout.EARLIER).iterdir()] == ["1"]
        run(short_run(**OTHER), tmp_path / "alone", quiet=True)
        assert_same_end(tmp_path / "alone", used)

    @pytest.mark.parametrize("moved", range(8))
    def test_killed_while_the_old_one_is_moved(
        self, used: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, moved: int
    ) -> None:
        plain, calls = Path.rename, []

        def dying(self: Path, target: Path) -> Path:
            if len(calls) == moved:
                raise SystemExit
            calls.append(self)
            return plain(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            try:
                resume.move_aside(used)
            except SystemExit:
                assert moved < 7
        assert resume.choose(short_run(**OTHER, resume="auto"), used) == (used, None)
        assert not moved or not resume.same_config(short_run(**CHANGES), used) or not layout.read_manifest(used)
        resume.move_aside(used)
        before = {name: content for name, content in contents(whole).items() if name != layout.LOG}
        assert contents(used / layout.EARLIER / "1") == before

    def test_the_next_one_gets_the_next_number(self, used: Path, whole: Path) -> None:
        resume.move_aside(used)
        shutil.copytree(whole, used, dirs_exist_ok=True)
        assert resume.move_aside(used) == used / layout.EARLIER / "2"
        assert resume.move_aside(used) is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"data": {"columns": {"text": "txt"}}},
            {"method": {"target_modules": ["querry"]}},
            {"trainer": {"metric_for_best_model": "mse"}},
        ],
    )
    def test_a_refused_run_changes_nothing(self, used: Path, whole: Path, changes: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            run(short_run(**changes), used, quiet=True)
        assert contents(used) == contents(whole)

    def test_a_refused_run_leaves_no_folder(self, used: Path) -> None:
        shutil.rmtree(used / layout.CHECKPOINTS)
        with pytest.raises(ConfigError):
            run(short_run(trainer={"metric_for_best_model": "mse"}), used, quiet=True)
        assert not (used / layout.CHECKPOINTS).exists()

    def test_a_dry_run_changes_nothing(self, used: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(short_run(dry_run=True), used)["status"] == "ok"
        assert contents(used) == contents(whole)
        assert "holds a run already, which stays as it is" in capsys.readouterr().err

    def test_a_fault_before_training_is_in_the_log_alone(self, used: Path, whole: Path) -> None:
        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("no memory")

        with pytest.raises(RuntimeError):
            run(short_run(), used, quiet=True, load=broken)  # type: ignore[arg-type]
        before, after = contents(whole), contents(used)
        assert b"no memory" in after.pop(layout.LOG).removeprefix(before.pop(layout.LOG))
        assert after == before

    def test_a_live_run_is_left_alone(self, used: Path) -> None:
        manifest = layout.read_manifest(used)
        alive = {**manifest, "status": "running", "process": the_parent(manifest)}
        (used / layout.MANIFEST).write_text(json.dumps(alive))
        before = contents(used)
        with pytest.raises(ConfigError, match=rf"still going on \(process {os.getppid()}\).*hydra\.run\.dir"):
            run(short_run(), used, quiet=True)
        assert contents(used) == before


def test_a_checkpoint_of_another_run_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, tmp_path / "run", step=1, **OTHER)
    shutil.copytree(whole / layout.CHECKPOINTS, tmp_path / "run" / layout.CHECKPOINTS, dirs_exist_ok=True)
    for wanted in ("auto", str(tmp_path / "run")):
        with pytest.raises(ConfigError, match=r"checkpoint-16 is not of the run whose settings are in .*config\.yaml"):
            resume.choose(short_run(**OTHER, resume=wanted), tmp_path / "run")


def test_changed_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.csv"
    lines = [f"a film of {'great' if index % 2 else 'awful'} {index},{index % 2}\n" for index in range(80)]
    path.write_text("text,label\n" + "".join(lines))
    changes = {"data": {"path": str(path)}}
    interrupted(monkeypatch, tmp_path / "run", step=7, **changes)
    before = contents(tmp_path / "run")
    path.write_text("text,label\n" + "".join(lines[::-1]))
    again = short_run(**CHANGES, **changes, resume=str(tmp_path / "run"))
    said = r"the data have changed since step 6: .*data\.csv had the fingerprint \w{12}, .*data\.csv has \w{12}\. Put"
    with pytest.raises(ConfigError, match=said):
        run(again, tmp_path / "other", quiet=True)
    assert contents(tmp_path / "run") == before
    path.write_text("text,label\n" + "".join(lines))
    assert run(again, tmp_path / "other", quiet=True)["status"] == "ok"


def test_a_run_that_was_moved_ends_with_its_own_best(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, tmp_path / "run", step=13)
    (tmp_path / "run").rename(tmp_path / "moved")
    run(short_run(**CHANGES, resume=str(tmp_path / "moved")), tmp_path / "other", quiet=True)
    assert_same_end(whole, tmp_path / "moved")


class TestChoice:
    def test_auto_without_a_run_begins_anew(self, tmp_path: Path) -> None:
        assert resume.choose(short_run(resume="auto"), tmp_path / "a" / "b") == (tmp_path / "a" / "b", None)

    def test_auto_says_what_it_passes_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        interrupted(monkeypatch, tmp_path / "day" / "first", step=4)
        short = {"trainer": {"max_steps": 4}}
        with caplog.at_level(logging.INFO, "adapterkit"):
            summary = run(short_run(**short, seed=5, resume="auto"), tmp_path / "day" / "second", quiet=True)
        assert summary["directory"] == str(tmp_path / "day" / "second")
        assert f"begun anew, as the unfinished run {tmp_path / 'day' / 'first'} had other settings" in caplog.text
        assert "seed" in caplog.text

    @pytest.mark.parametrize("text", ["a: [", "- 1", None])
    def test_auto_passes_over_a_run_whose_settings_cannot_be_read(self, tmp_path: Path, text: str | None) -> None:
        broken = tmp_path / "day" / "broken"
        broken.mkdir(parents=True)
        (broken / layout.MANIFEST).write_text('{"status": "failed"}')
        if text is not None:
            (broken / layout.CONFIG).write_text(text)
        config, directory = short_run(resume="auto"), tmp_path / "day" / "new"
        assert resume.choose(config, directory) == (directory, None)
        assert resume.passed_over(config, directory).endswith(f"{broken} had settings that cannot be read")

    def test_other_settings_are_refused_by_name(self, whole: Path, tmp_path: Path) -> None:
        changed = short_run(**CHANGES, resume=str(whole), seed=5)
        with pytest.raises(ConfigError, match=r"other settings: seed"):
            resume.choose(changed, tmp_path)

    def test_a_run_that_ended_is_refused(self, whole: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nothing to go on with"):
            resume.choose(short_run(**CHANGES, resume=str(whole)), tmp_path)

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="not the directory of a run"):
            resume.choose(short_run(resume=str(tmp_path)), tmp_path)

    def test_a_running_process_is_left_alone(self, whole: Path, tmp_path: Path) -> None:
        directory = tmp_path / "day" / "live"
        directory.mkdir(parents=True)
        manifest = layout.read_manifest(whole)
        alive = {**manifest, "status": "running", "process": the_parent(manifest)}
        (directory / layout.MANIFEST).write_text(json.dumps(alive))
        (directory / layout.CONFIG).write_text((whole / layout.CONFIG).read_text())
        config = short_run(**CHANGES, resume="auto")
        assert resume.choose(config, tmp_path / "day" / "new") == (tmp_path / "day" / "new", None)
        alive["process"]["began"] -= 3600  # a process that ended, whose number another one has now
        (directory / layout.MANIFEST).write_text(json.dumps(alive))
        assert resume.choose(config, tmp_path / "day" / "new")[0] == directory


def test_rotation_keeps_the_best_and_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        resume.mark_complete(tmp_path / f"checkpoint-{step}")
    resume.rotate(tmp_path, 2, best=str(tmp_path / "checkpoint-10"))
    assert [path.name for path in resume.checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    resume.rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-10"))
    assert [path.name for path in resume.checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    resume.rotate(tmp_path, 1, best=None)
    assert [path.name for path in resume.checkpoints(tmp_path)] == ["checkpoint-100"]
