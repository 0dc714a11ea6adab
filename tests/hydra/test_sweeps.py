"""Sweeps from the command line: checked whole, failures kept apart, reported at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapterkit.errors import TrainingError
from adapterkit.hydra import sweeps
from adapterkit.hydra.arguments import parse
from adapterkit.hydra.diagnosis import composer_for
from adapterkit.hydra.private import Composer
from adapterkit.hydra.sweeps import judge, settled
from tests.commandline import LORA, command, stand_in


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


COMPOSER = composer_for(parse(LORA))
SHAPE = COMPOSER.compose(parse(LORA).overrides)


def only_sweep(directory: Path) -> Path:
    (found,) = directory.glob("multirun/*/*")
    return found


def verdict(*argv: str):
    arguments = parse(["-m", *argv])
    composer = composer_for(arguments)
    return judge(composer.compose(settled(arguments, composer).overrides, sweep=True), composer)


def fails_at(rank: int):
    def score(config):
        if config.method.r == rank:
            raise TrainingError("the loss is NaN at step 3")
        return config.method.r / 100 + config.method.lora_alpha / 1000

    return score


def test_one_bad_trial_starts_nothing(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    result = command(capsys, "-m", *LORA, "method.r=4,0,8")
    assert result.code == 2
    assert "1 of 3 trials would fail; nothing was started" in result.err
    assert "method.r: must be greater than 0 (got 0)" in result.err
    assert "1 trial, the first: method.r=0" in result.err
    assert not training.configs
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("method.r=4,8,4", "method.r: 4"),
        ("method.use_dora=true,True", "method.use_dora: True"),
        ("method.target_modules=[query],[value],[query]", "method.target_modules: [query]"),
        ("task=seq_cls,seq_cls", "task: seq_cls"),
    ],
)
def test_equal_trials_are_refused(axis, said):
    assert str(verdict(*LORA, axis)) == (
        f"{said} stands twice, and the trials would be equal: leave one out; to run a trial again, sweep seed"
    )


@pytest.mark.parametrize("axis", ["method.r=4,8", "seed=1,2", "method.target_modules=[query],[query,value]"])
def test_trials_that_differ_are_not(axis):
    assert not verdict(*LORA, axis).refused


@pytest.mark.parametrize(
    ("argv", "failing", "total", "words"),
    [
        ([*LORA, "method.r=4,8"], 0, 2, []),
        ([*LORA, "method.r=range(1,5)", "seed=choice(0,1)"], 0, 8, []),
        (["method=lora,dora", "task=seq_cls", "method.r=4"], 0, 2, []),
        (["method=lora,prefix_tuning", "task=seq_cls", "method.r=4,8"], 2, 4, ["method.r: unknown key", "num_virtual"]),
        (["method=lora,lorra", "task=seq_cls", "method.r=4,8"], 2, 4, ["no method named 'lorra'; did you mean 'lora'"]),
        ([*LORA, "method.rnk=1", "method.r=4,8"], 2, 2, ["method.rnk: unknown key"]),
        ([*LORA, "trainer.learning_rate=interval(-1,1)"], 1, 2, ["learning_rate: must be greater than 0"]),
        ([*LORA, "method.target_modules=[q],[q,v]"], 0, 2, []),
        (["experiment=rank_sweep"], 0, 9, []),
        (["experiment=rank_sweep", "method.r=3"], 0, 3, []),
        (["experiment=qlora,lora_sentiment"], 1, 2, ["builtin:llama is too small to be quantised"]),
        (["experiment=compare_lora_variants", "method=lora"], 0, 2, []),
    ],
)
def test_every_trial_is_judged(argv, failing, total, words):
    found = verdict(*argv)
    assert (found.failing, found.checked) == (failing, total)
    for word in words:
        assert word in str(found)


@pytest.mark.parametrize("subdir", ["one", "r${method.r}"])
def test_trials_that_would_share_a_directory_are_refused(subdir):
    found = verdict(*LORA, "method.r=4,8", "seed=1,2", f"hydra.sweep.subdir={subdir}")
    assert found.refused
    assert "method.r=4 seed=1, and method.r=4 seed=" in str(found)


@pytest.mark.parametrize("subdir", ["r${method.r}-${seed}", "${hydra.job.override_dirname}", "x${hydra.job.num}"])
def test_trials_with_a_directory_of_their_own_each_are_not(subdir):
    assert not verdict(*LORA, "method.r=4,8", "seed=1,2", f"hydra.sweep.subdir={subdir}").refused


def test_a_thousand_trials_are_composed_once(monkeypatch):
    composed = []
    monkeypatch.setattr(sweeps, "_thorough", lambda *trial: pytest.fail(f"{trial[1]} takes 20 ms"))
    monkeypatch.setattr(Composer, "compose_trial", lambda *a, own=Composer.compose_trial: composed.append(a) or own(*a))
    axes = [f"method.r={','.join(map(str, range(1, 41)))}", f"seed={','.join(map(str, range(25)))}"]
    found = verdict(*LORA, *axes, "method.lora_dropout=0.1")
    assert (found.checked, found.failing, len(composed)) == (1000, 0, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["method.r", "method.rank_pattern", "method.rank_pattern.q", "seed", "data.columns", "x.y", "model"]
            ),
            st.one_of(
                st.integers(-2, 9).map(str),
                st.sampled_from(["null", "true", "word", "{a:1,b:{c:2}}", "{q:3}", "[1,2]", "'${seed}'", "1e-3"]),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
@example([("method.r", "{a:1,b:{c:2}}"), ("method.r", "[1,2]"), ("method.r", "1")])
@settings(max_examples=30, deadline=None)
def test_the_quick_check_says_what_the_thorough_one_says(settings_of_trial):
    values = COMPOSER.parse([f"++{key}={value}" for key, value in settings_of_trial])
    if sweeps._are_plain([[value] for value in values], SHAPE):
        quick, thorough = sweeps._quick(SHAPE)(values), sweeps._thorough(SHAPE, values)
        assert bool(quick) == bool(thorough)
        assert quick == thorough or thorough[0].startswith("Error merging override")  # a dictionary by a list


def test_interpolations_are_resolved_for_each_trial():
    found = verdict(*LORA, "method.r=1,2,3", "seed=${method.r}", "data.max_length=${trainer.max_steps}")
    assert (found.checked, found.failing) == (3, 3)
    assert "data.max_length: must be greater than 0 (got -1)" in str(found)


def test_trials_run_and_are_reported(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch, lambda config: config.method.r / 100)
    result = command(capsys, "-m", *LORA, "method.r=4,8", "method.lora_alpha=8,16")
    assert result.code == 0, result.err
    assert [(c.method.r, c.method.lora_alpha) for c in training.configs] == [(4, 8), (4, 16), (8, 8), (8, 16)]
    sweep = only_sweep(tmp_path)
    assert {path.name for path in sweep.iterdir()} >= {"0", "1", "2", "3", "sweep.csv", "sweep.json", "heatmap.png"}
    assert "ok (best)" in result.out
    assert json.loads((sweep / "sweep.json").read_text())["best"] == 2


def test_a_failed_trial_leaves_the_others_alone(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch, fails_at(4))
    result = command(capsys, "-m", *LORA, "method.r=2,4,8")
    assert result.code == 3
    assert [config.method.r for config in training.configs] == [2, 4, 8]
    assert "adapterkit: trial 1 failed: the loss is NaN at step 3" in result.err
    assert "trial 1 failed: the loss is NaN at step 3" in result.out
    sweep = only_sweep(tmp_path)
    assert json.loads((sweep / "1" / "summary.json").read_text())["error"] == "the loss is NaN at step 3"
    assert "TrainingError" in (sweep / "1" / "error.txt").read_text()


def test_a_failed_trial_stops_the_rest_on_request(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch, fails_at(4))
    result = command(capsys, "-m", *LORA, "method.r=2,4,8,16", "sweep.on_failure=stop")
    assert result.code == 3
    assert [config.method.r for config in training.configs if config.method.r != 4] == [2]
    content = json.loads((only_sweep(tmp_path) / "sweep.json").read_text())
    assert [trial["status"] for trial in content["trials"]] == ["ok", "failed", "skipped", "skipped"]


def test_a_sweep_in_the_directory_of_another_reports_its_own_trials(capsys, tmp_path, monkeypatch):
    stand_in(monkeypatch, lambda config: config.method.r / 100)
    argv = ["-m", *LORA, "hydra.sweep.dir=again", "sweep.on_failure=stop"]
    command(capsys, *argv, "method.r=2,4,8")
    stand_in(monkeypatch, fails_at(4))
    assert command(capsys, *argv, "method.r=2,4").code == 3
    trials = json.loads((tmp_path / "again" / "sweep.json").read_text())["trials"]
    assert [(trial["status"], trial["error"]) for trial in trials] == [("ok", None), ("failed", trials[1]["error"])]
    assert trials[1]["accuracy"] is None
    assert json.loads((tmp_path / "again" / "1" / "summary.json").read_text())["status"] == "ok"
    stand_in(monkeypatch)
    assert command(capsys, *argv, "method.r=2,4").code == 0


def test_an_interrupted_sweep_is_reported_as_far_as_it_went(capsys, tmp_path, monkeypatch):
    def score(config):
        if config.method.r == 4:
            raise KeyboardInterrupt
        return 0.5

    stand_in(monkeypatch, score)
    result = command(capsys, "-m", *LORA, "method.r=2,4,8")
    assert result.code == 130
    content = json.loads((only_sweep(tmp_path) / "sweep.json").read_text())
    assert [trial["status"] for trial in content["trials"]] == ["ok", "interrupted"]


@pytest.mark.parametrize(
    ("direction", "more", "said"),
    [
        ("minimize", [], "of accuracy more is better: set hydra.sweeper.direction=maximize"),
        ("maximize", ["sweep.metric=loss"], "of loss less is better: set hydra.sweeper.direction=minimize"),
        ("minimize", ["sweep.metric=test_loss"], ""),
        ("maximize", [], ""),
    ],
)
def test_a_search_for_the_worst_trial_is_refused(direction, more, said):
    found = verdict(*LORA, "method.r=2,4", f"+hydra.sweeper.direction={direction}", *more)
    assert found.fault == (f"hydra.sweeper.direction={direction}: {said}, or name another sweep.metric" if said else "")
    assert found.refused == bool(said)


def test_a_sweep_that_is_resumed_trains_what_had_not_ended(tmp_path, monkeypatch, capsys):
    argv = ["-m", *LORA, "method.r=2,4", "hydra.sweep.dir=sweep", "trainer.max_steps=2", "trainer.use_cpu=true"]
    assert command(capsys, *argv).code == 0
    shutil.rmtree(tmp_path / "sweep" / "1" / "adapter")
    before = (tmp_path / "sweep" / "0" / "manifest.json").read_bytes()
    result = command(capsys, *argv, "resume=auto")
    assert result.code == 0, result.err
    trials = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"]
    assert [(trial["status"], Path(trial["directory"]).name) for trial in trials] == [("ok", "0"), ("ok", "1")]
    assert (tmp_path / "sweep" / "0" / "manifest.json").read_bytes() == before
    assert not (tmp_path / "sweep" / "0" / "earlier").exists()
    assert (tmp_path / "sweep" / "1" / "earlier").exists()


def test_a_trial_that_goes_on_in_another_directory_is_reported_as_it_ended_there(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    training.goes_on_in = tmp_path / "interrupted"
    training.goes_on_in.mkdir()
    result = command(capsys, "-m", *LORA, "method.r=2", "resume=auto")
    assert result.code == 0, result.out
    (trial,) = json.loads((only_sweep(tmp_path) / "sweep.json").read_text())["trials"]
    assert (trial["status"], trial["accuracy"]) == ("ok", 0.5)
    assert (only_sweep(tmp_path) / trial["directory"]).resolve() == training.goes_on_in


def test_an_experiment_can_be_a_sweep(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    result = command(capsys, "experiment=rank_sweep", "method.lora_alpha=4,8")
    assert result.code == 0, result.err
    assert len(training.configs) == 6


def test_trials_are_ranked_by_the_metric_that_was_asked_for(capsys, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    command(capsys, "-m", *LORA, "method.r=2,4", "sweep.metric=loss")
    assert json.loads((only_sweep(tmp_path) / "sweep.json").read_text())["metric"] == "loss"


def test_one_trial_after_another_can_be_run_in_one_process(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    for _ in range(2):
        assert command(capsys, *LORA).code == 0
    assert len(set(training.directories)) == 2
    assert all(directory.is_relative_to(tmp_path / "outputs") for directory in training.directories)


@pytest.fixture
def rerunnable(capsys) -> Path:
    """The directory of a run's own ``config.yaml``, whole and without a defaults list."""
    content = command(capsys, "--cfg", "job", *LORA).out
    Path("run").mkdir()
    Path("run", "config.yaml").write_text(content)
    Path("run", "again.yaml").write_text(content)
    return Path("run")


FLAGS = (["-cp", "run", "-cn", "config"], ["--config-path=run", "--config-name=config"], ["-cd", "run", "-cn", "again"])


@pytest.mark.parametrize("flags", FLAGS)
def test_a_sweep_over_the_config_of_a_run_is_checked_whole(flags, rerunnable, capsys, tmp_path, monkeypatch):
    if "-cd" in flags:
        (rerunnable / "config.yaml").unlink()
    training = stand_in(monkeypatch)
    for verb in ([], ["validate"]):
        result = command(capsys, *verb, "-m", *flags, "method.r=4,x")
        assert result.code == 2
        assert "1 of 2 trials would fail; nothing was started" in result.err
    assert not training.configs
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_sweep_over_the_config_of_a_run_is_reported(rerunnable, capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    assert command(capsys, "validate", *FLAGS[0]).out == "ok: method lora, task seq_cls\n"
    told = command(capsys, "-m", *FLAGS[0], "method.r=4,8")
    assert told.code == 0
    again = f"python -m adapterkit --config-path={tmp_path / 'run'} --config-name=config method.r=4"
    assert f"best: trial 0: {again}\n" in told.out
    assert command(capsys, *again.split()[3:]).code == 0
    assert [config.method.r for config in training.configs] == [4, 8, 4]
    assert (only_sweep(tmp_path) / "sweep.json").is_file()
