"""What a sweep leaves behind: rows, files and a picture, whatever its trials came to."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from adapterkit.sweep import plot
from adapterkit.sweep.plot import heat_map
from adapterkit.sweep.report import Report, report
from adapterkit.sweep.table import command, quoted, trainable
from adapterkit.sweep.trial import SWEEP, Trial, failed_before, metric_value, read_trials


def leave(sweep, number, overrides, *, status="ok", greater=True, **metrics):
    trial = Trial(sweep / str(number), number, overrides)
    trial.begin()
    if status != "ok":
        trial.end(status, "the loss is NaN\nat step 3")
        return
    summary = {
        "status": "ok",
        "metrics": metrics,
        "metric": next(iter(metrics), None),
        "greater_is_better": greater,
        "trainable_parameters": 120,
        "all_parameters": 1000,
        "seconds": 2.5,
    }
    (trial.directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def grid(tmp_path):
    """Rank by alpha, one of them failed."""
    for number, (r, alpha) in enumerate((r, a) for r in (2, 16) for a in (4, 8)):
        status = "failed" if number == 1 else "ok"
        overrides = ["method=lora", f"++method.r={r}", f"++method.lora_alpha={alpha}"]
        leave(tmp_path, number, overrides, status=status, accuracy=r / 20, loss=1 / alpha)
    return tmp_path


def test_trials_are_read_back_as_they_were_left(grid):
    trials = read_trials(grid)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[0].values == {"method": "lora", "method.r": "2", "method.lora_alpha": "4"}
    assert [trial.failed for trial in trials] == [False, True, False, False]
    assert math.isnan(trials[1].metric("accuracy"))


def test_a_trial_without_a_summary_was_interrupted(tmp_path):
    Trial(tmp_path / "0", 0, ["a=1"]).begin()
    (trial,) = read_trials(tmp_path)
    assert (trial.status, trial.failed) == ("interrupted", True)


def test_what_a_run_wrote_before_it_failed_is_kept(tmp_path):
    trial = Trial(tmp_path / "0", 0, ["a=1"])
    trial.begin()
    (trial.directory / "summary.json").write_text('{"seconds": 4.0, "status": "running"}')
    trial.end("failed", "no")
    assert read_trials(tmp_path)[0].summary == {"seconds": 4.0, "status": "failed", "error": "no"}
    assert failed_before(Trial(tmp_path / "1", 1, []))
    assert not failed_before(Trial(tmp_path / "1" / "x", 1, []))


def test_a_refused_trial_leaves_the_run_of_an_earlier_sweep_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv(SWEEP, "first")
    leave(tmp_path, 0, ["a=1"], accuracy=0.5)
    leave(tmp_path, 1, ["a=2"], status="failed")
    before = (tmp_path / "0" / "summary.json").read_text()
    monkeypatch.setenv(SWEEP, "second")
    leave(tmp_path, 0, ["a=9"], status="failed")
    (trial,) = read_trials(tmp_path, sweep="second")
    assert (trial.values, trial.status, trial.summary["error"]) == ({"a": "9"}, "failed", "the loss is NaN\nat step 3")
    assert math.isnan(trial.metric("accuracy"))
    assert (tmp_path / "0" / "summary.json").read_text() == before


def test_a_trial_cut_off_is_not_taken_for_the_run_before_it(tmp_path):
    leave(tmp_path, 0, ["a=1"], accuracy=0.5)
    Trial(tmp_path / "0", 0, ["a=2"]).begin()
    assert read_trials(tmp_path)[0].status == "interrupted"


def test_a_failure_of_an_earlier_sweep_stops_nothing(tmp_path):
    leave(tmp_path, 1, ["a=2"], status="failed")
    (tmp_path / "1" / "error.txt").write_text("Traceback")
    first, second = Trial(tmp_path / "0", 0, ["a=1"]), Trial(tmp_path / "1", 1, ["a=2"])
    first.begin()
    assert not failed_before(first)
    second.begin()
    assert not (tmp_path / "1" / "error.txt").exists()


@pytest.mark.parametrize(("greater", "best"), [(True, 2), (False, 0)])
def test_the_best_trial_goes_by_the_metric(tmp_path, greater, best):
    for number, value in enumerate((0.1, math.nan, 0.9)):
        leave(tmp_path, number, [f"seed={number}"], greater=greater, score=value)
    found = Report(tmp_path, read_trials(tmp_path))
    assert found.best is not None
    assert found.best.number == best


def test_another_metric_can_rank(grid, capsys):
    report(grid, metric="loss")
    content = json.loads((grid / "sweep.json").read_text())
    assert (content["metric"], content["greater_is_better"], content["best"]) == ("loss", False, 3)


def test_a_metric_that_no_trial_has_is_told(grid, capsys):
    assert report(grid, metric="acuracy") == 1
    out = capsys.readouterr().out
    assert "no trial has sweep.metric=acuracy; did you mean 'accuracy'?" in out
    assert "ranked by accuracy; measured: accuracy, loss" in out
    assert json.loads((grid / "sweep.json").read_text())["metric"] == "accuracy"


@pytest.mark.parametrize("metric", ["mse", "test_mse", "loss", "perplexity"])
def test_less_of_an_error_is_better(tmp_path, metric, capsys):
    for number, value in enumerate((0.3, 0.1, 0.9)):
        leave(tmp_path, number, [f"seed={number}"], pearson=value, **{metric: value})
    report(tmp_path, metric=metric)
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert (content["metric"], content["greater_is_better"], content["best"]) == (metric, False, 1)


def test_the_test_split_is_ranked_as_the_metric_of_the_trial_is(tmp_path, capsys):
    for number, value in enumerate((0.3, 0.1, 0.9)):
        leave(tmp_path, number, [f"seed={number}"], greater=False, wer=value, test_wer=value)
    report(tmp_path, metric="test_wer")
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] == 1


def test_csv_and_json_have_a_row_for_every_trial(grid, capsys):
    assert report(grid) == 1
    rows = list(csv.DictReader(io.StringIO((grid / "sweep.csv").read_text())))
    content = json.loads((grid / "sweep.json").read_text())
    assert [row["method.r"] for row in rows] == ["2", "2", "16", "16"]
    assert [float(row["accuracy"]) for row in rows if row["accuracy"]] == [0.1, 0.8, 0.8]
    assert rows[1]["status"] == "failed"
    assert rows[1]["error"] == "the loss is NaN\nat step 3"
    assert content["axes"] == ["method.r", "method.lora_alpha"]
    assert content["failed"] == [1]
    assert len(content["trials"]) == 4


def test_the_table_names_best_failures_and_files(grid, capsys):
    report(grid)
    out = capsys.readouterr().out
    assert "ok (best)" in out
    assert "best: trial 2: python -m adapterkit method=lora method.r=16 method.lora_alpha=4" in out
    assert "trial 1 failed: the loss is NaN\n" in out
    assert "120 (12.00%)" in out
    for name in ("sweep.csv", "sweep.json", "heatmap.png"):
        assert f"wrote {grid / name}" in out


def test_a_heat_map_shows_the_metric_over_two_numeric_axes(grid, monkeypatch):
    seen = []
    draw = plot._draw
    monkeypatch.setattr(plot, "_draw", lambda *arguments: seen.append(arguments) or draw(*arguments))
    path = heat_map(Report(grid, read_trials(grid)))
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    ((_, panels, axes, limits),) = seen
    assert axes == ("method.r", "method.lora_alpha")
    assert limits == (0.1, 0.8)
    cells = panels[""]
    assert (cells[2.0, 4.0], cells[16.0, 8.0]) == (0.1, 0.8)
    assert math.isnan(cells[2.0, 8.0])


def test_other_axes_become_panels_and_shared_cells_keep_the_best(tmp_path):
    number = 0
    for method in ("lora", "dora"):
        for r, alpha, seed in ((2, 4, 0), (2, 4, 1), (4, 4, 0), (2, 8, 0)):
            overrides = [f"method={method}", f"method.r={r}", f"method.lora_alpha={alpha}", f"seed={seed}"]
            leave(tmp_path, number, overrides, score=number / 10)
            number += 1
    found = Report(tmp_path, read_trials(tmp_path))
    panels = plot._panels(found, "method.r", "method.lora_alpha")
    assert set(panels) == {"method=lora seed=0", "method=lora seed=1", "method=dora seed=0", "method=dora seed=1"}
    assert heat_map(found) is not None
    shared = plot._panels(Report(tmp_path, found.trials[:2]), "method.r", "method.lora_alpha")
    assert list(shared["seed=0"].values()) == [0.0]


@pytest.mark.parametrize("overrides", [["seed={n}"], ["seed={n}", "model.dtype=x{n}"]])
def test_no_heat_map_without_two_numeric_axes(tmp_path, overrides, capsys):
    for number in range(3):
        leave(tmp_path, number, [override.format(n=number) for override in overrides], score=0.5)
    assert report(tmp_path) == 0
    assert not (tmp_path / "heatmap.png").exists()


def test_a_sweep_of_failures_is_reported_too(tmp_path, capsys):
    for number in range(2):
        leave(tmp_path, number, [f"a={number}", f"b={number}"], status="failed")
    assert report(tmp_path) == 2
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] is None


def test_a_sweep_without_trials_is_reported_too(tmp_path, capsys):
    assert report(tmp_path) == 0


def test_a_command_can_be_pasted_into_a_shell(tmp_path):
    trial = Trial(tmp_path, 0, ["experiment=x", "++method.target_modules='(q|v)'"])
    assert command(trial) == (
        "python -m adapterkit experiment=x 'method.target_modules='\\''(q|v)'\\''' hydra.mode=RUN"
    )
    assert quoted("a=1e-3,b") == "a=1e-3,b"


def test_counts_are_readable(tmp_path):
    assert (
        trainable(Trial(tmp_path, 0, [], {"trainable_parameters": 12345, "all_parameters": 1000000}))
        == "12,345 (1.23%)"
    )
    assert trainable(Trial(tmp_path, 0, [], {})) == ""


def test_the_metric_of_a_summary():
    summary = {"metrics": {"accuracy": 0.5, "loss": 1}, "metric": "accuracy"}
    assert metric_value(summary, None) == 0.5
    assert metric_value(summary, "loss") == 1.0
    assert metric_value({}, None) is None
