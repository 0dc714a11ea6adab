"""Every mistake on a command line is told on one screen, exit code 2, before anything is written."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from adapterkit.errors import CheckFailedError, DataError, TrainingError
from tests.commandline import LORA, Result, command, in_new_process, stand_in

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "nothing chosen": (["seed=1"], ["no method chosen", "lora", "no task chosen", "seq_cls"]),
    "no task": (["+method=lora"], ["no task chosen", "seq_cls"]),
    "unknown method": (
        ["+method=lroa", "task=seq_cls"],
        ["no method named 'lroa'", "did you mean 'lora'", "presets: dora"],
    ),
    "unknown task": (["+method=lora", "task=seqcls"], ["no task named 'seqcls'", "did you mean 'seq_cls'"]),
    "unknown preset": ([*LORA, "trainer=fsat"], ["no trainer named 'fsat'", "did you mean 'fast'", "long"]),
    "unknown experiment": (["experiment=rank"], ["no experiment named 'rank'", "rank_sweep"]),
    "unknown group": ([*LORA, "+mehtod=lora"], ["mehtod: unknown key", "did you mean 'method'"]),
    "unknown key of the method": ([*LORA, "method.rnk=4"], ["method.rnk: unknown key", "did you mean 'method.r'"]),
    "the same with a plus": ([*LORA, "+method.rnk=4"], ["method.rnk: unknown key", "did you mean 'method.r'"]),
    "unknown key of the trainer": ([*LORA, "trainer.learning_rte=1"], ["did you mean 'trainer.learning_rate'"]),
    "key of another section": ([*LORA, "method.learning_rate=1"], ["did you mean 'trainer.learning_rate'"]),
    "unknown key at the top": ([*LORA, "sede=1"], ["sede: unknown key", "did you mean 'seed'", "command line: sede=1"]),
    "unknown section": ([*LORA, "trian.seed=1"], ["trian: unknown key", "did you mean 'trainer'"]),
    "bool for int": ([*LORA, "method.r=true"], ["method.r: must be a valid integer (got true, a bool)"]),
    "word for int": ([*LORA, "method.r=four"], ["method.r: must be a valid integer (got 'four')", "method.r=four"]),
    "float for int": ([*LORA, "method.r=4.5"], ["method.r", "got 4.5, a float"]),
    "yes for bool": ([*LORA, "method.use_dora=yes"], ["method.use_dora: must be a valid boolean (got 'yes')"]),
    "octal for int": ([*LORA, "method.r=010"], ["method.r: must be a valid integer (got '010')"]),
    "choice": ([*LORA, "method.bias=al"], ["'none', 'all' or 'lora_only'", "did you mean 'all'"]),
    "out of range": ([*LORA, "method.r=0"], ["method.r: must be greater than 0 (got 0)"]),
    "across fields": (
        [*LORA, "method.lora_bias=true", "method.use_dora=true"],
        ["method: lora_bias and use_dora exclude each other"],
    ),
    "missing": (["method=prefix_tuning", "task=seq_cls"], ["method.num_virtual_tokens: required"]),
    "two methods": (
        ["+method=lora", "+method=prefix_tuning", "task=seq_cls"],
        ["given 2 times", "-m method=lora,prefix_tuning"],
    ),
    "list of methods": (["+method=[lora,dora]", "task=seq_cls"], ["a run has one method", "-m method=lora,dora"]),
    "dictionary for a group": ([*LORA, "model={dtype: auto}"], ["takes the name of a preset", "model.dtype=..."]),
    "repeated key": ([*LORA, "method.r=4", "method.r=8"], ["method.r: given 2 times (method.r=4, method.r=8)"]),
    "sweep without -m": ([*LORA, "method.r=4,8"], ["method.r: several values (4,8)", "add -m"]),
    "parentheses": (
        [*LORA, "method.target_modules=(q|v)_proj"],
        ["quoting twice", "\"method.target_modules='(q|v)_proj'\""],
    ),
    "home directory": ([*LORA, "data.path=~/a.csv"], ["quoting twice", "\"data.path='~/a.csv'\""]),
    "range without end": (["-m", *LORA, "method.r=range(4,8,0)"], ["method.r: range() with a step of 0 has no end"]),
    "flag that needs another": ([*LORA, "--resolve"], ["--resolve"]),
    "word for a list": ([*LORA, "trainer.report_to=wandb"], ["a list of one: trainer.report_to=[wandb]"]),
    "metric": ([*LORA, "sweep.metric=zz"], ["sweep.metric: seq_cls has no such metric. It measures accuracy, f1,"]),
    "coefficient of one": ([*LORA, "trainer.adam_beta1=1"], ["trainer.adam_beta1: must be less than 1 (got 1)"]),
    "check before there can be a gradient": (
        [*LORA, "trainer.check_steps=1"],
        ["trainer.check_steps: must be greater than or equal to 2 (got 1)"],
    ),
    "number as text": (
        [*LORA, "method.r='4'"],
        ["(got '4'); this is text: leave its quotes out, or read an environment variable by '${oc.decode:"],
    ),
    "interpolation in another": (
        [*LORA, "method.r=${oc.decode:${oc.env:RANK}}"],
        ["need quoting twice", "'method.r=\"${oc.decode:${oc.env:RANK}}\"'"],
    ),
    "no equals sign": ([*LORA, "method.r"], ["cannot read 'method.r': expected key=value"]),
    "None for null": ([*LORA, "model.revision=None"], ["model.revision: the null value is spelled null"]),
    "None for an int": ([*LORA, "data.max_train_samples=None"], ["the null value is spelled null"]),
    "digits for text": ([*LORA, "model.revision=12e5678"], ["got Infinity, a float", "quote twice"]),
    "dots in a pattern": (
        [*LORA, "method.rank_pattern.model.layers.0=4"],
        ["method.rank_pattern={model.layers.0:4}"],
    ),
    "inside a pattern": ([*LORA, "method.rank_pattern={.*q:4,.*v:no}"], ["method.rank_pattern['.*v']: must be"]),
    "environment": ([*LORA, "seed=${oc.env:NO_SUCH_VARIABLE}"], ["seed", "NO_SUCH_VARIABLE"]),
    "Hub id as a preset": ([*LORA, "model=google-bert/bert"], ["model.name_or_path=google-bert/bert"]),
    "launcher that is not installed": (
        ["-m", *LORA, "seed=1,2", "hydra/launcher=slurm"],
        ["pip install 'adapterkit[slurm]'"],
    ),
    "config directory": (["--config-dir", "nowhere", *LORA], ["--config-dir nowhere: no such directory"]),
    "no data file": ([*LORA, "data.path=here/dev.tsv"], ["data.path: here/dev.tsv: no such file or directory (from "]),
    "no model directory": (
        [*LORA, "model.name_or_path=checkpoints/mini/lm"],
        ["model.name_or_path: checkpoints/mini/lm: no such file or directory"],
    ),
    "no data file in a sweep": ([*LORA, "-m", "method.r=4,8", "data.path=/nowhere"], ["data.path: /nowhere: no such"]),
    "metric of a sweep": (
        ["-m", *LORA, "seed=1,2", "sweep.metric=acuracy"],
        ["sweep.metric: seq_cls has no such metric; did you mean 'accuracy'? It measures", "nothing was started"],
    ),
    "scheduler": (
        [*LORA, "trainer.lr_scheduler_type=linaer"],
        ["lr_scheduler_type: ", "did you mean 'linear'?", "cosine"],
    ),
    "optimizer": ([*LORA, "trainer.optim=adamw_torhc"], ["trainer.optim: no such choice", "did you mean", "adafactor"]),
    "metric of the best": (
        [*LORA, "trainer.metric_for_best_model=acuracy"],
        ["metric_for_best_model: seq_cls has no such metric; did you mean 'accuracy'?"],
    ),
    "logger": ([*LORA, "trainer.report_to=[tensorbord]"], ["trainer.report_to[0]: ", "did you mean 'tensorboard'"]),
    "logger that is not installed": ([*LORA, "trainer.report_to=[trackio]"], ["pip install 'adapterkit[trackio]'"]),
    "checkpoints beside evaluations": (
        [*LORA, "trainer.eval_strategy=steps", "trainer.save_strategy=epoch"],
        ["trainer: load_best_model_at_end needs a checkpoint at every evaluation", "trainer.save_strategy=epoch"],
    ),
    "checkpoints between evaluations": (
        [*LORA, "trainer.eval_strategy=steps", "trainer.save_strategy=steps", "trainer.eval_steps=3"],
        ["trainer.save_steps=500 is no multiple of the 3 steps"],
    ),
    "plateau without evaluations": (
        [*LORA, "trainer.lr_scheduler_type=reduce_lr_on_plateau", "trainer.eval_strategy=no"],
        ["trainer: lr_scheduler_type=reduce_lr_on_plateau needs evaluations"],
    ),
    "half a step": ([*LORA, "trainer.logging_steps=1.5"], ["trainer.logging_steps: must be a whole number of steps"]),
    "two half types": (
        [*LORA, "trainer.bf16=true", "trainer.fp16=true"],
        ["trainer: bf16 and fp16 exclude each other"],
    ),
    "two quantisations": (
        [*LORA, "model.load_in_4bit=true", "model.load_in_8bit=true"],
        ["model: load_in_8bit and load_in_4bit exclude each other"],
    ),
    "built-in model": (
        [*LORA, "model.name_or_path=builtin:brt"],
        ["model.name_or_path: no such built-in model; did you mean 'builtin:bert'?", "builtin:llama"],
    ),
    "type of another task": (
        [*LORA, "method.task_type=CAUSAL_LM"],
        ["method.task_type: does not go with task=seq_cls", "SEQ_CLS", "got 'CAUSAL_LM'"],
    ),
    "run to resume": ([*LORA, "resume=/nope"], ["resume: /nope: no such directory"]),
    "directory to resume that is no run": ([*LORA, "resume=/"], ["resume: /: not the directory of a run: it has no"]),
    "regular expression": (
        [*LORA, "method.target_modules='(['"],
        ["method.target_modules: not a regular expression: unterminated character set at position 1"],
    ),
    "regular expression of a pattern": (
        [*LORA, "method.rank_pattern={*q:4}"],
        ["method: rank_pattern: '*q' is not a regular expression: nothing to repeat at position 0"],
    ),
    "role of a column": (
        [*LORA, "data.columns.txt=body"],
        ["data.columns.txt: seq_cls reads no such column; did you mean 'text'?", "text_pair, label"],
    ),
    "large seed": ([*LORA, "seed=4294967296"], ["seed: must be less than 4294967296"]),
    "no adapter name": ([*LORA, "adapter_name=''"], ["adapter_name: must be letters, digits, _ and -"]),
    "dot in an adapter name": ([*LORA, "adapter_name=a.b"], ["adapter_name: must be letters, digits, _ and -"]),
    "slash in an adapter name": ([*LORA, "adapter_name=a/b"], ["adapter_name: must be letters, digits, _ and -"]),
    "attribute of a module as an adapter name": (
        [*LORA, "adapter_name=training"],
        ["adapter_name: is an attribute of every module"],
    ),
    "private adapter name": ([*LORA, "adapter_name=_modules"], ["adapter_name: must be letters", "without _ in front"]),
    "smoothing of what is no label": (
        ["+method=lora", "task=question_ans", "trainer.label_smoothing_factor=0.1"],
        ["trainer.label_smoothing_factor: the loss of question_ans cannot be smoothed (got 0.1)"],
    ),
    "an adapter that is not trained": (
        [*LORA, "method.inference_mode=true"],
        ["method.inference_mode: nothing would be trained (got true)"],
    ),
    "a setting of data that are not named": (
        [*LORA, "data.header=true"],
        ["data: header=True would do nothing without data.path or data.train"],
    ),
    "a setting of another task": (
        [*LORA, "data.doc_stride=16", "data.max_target_length=9"],
        ["data.doc_stride: would do nothing, as seq_cls does not read it (got 16)", "data.max_target_length: would"],
    ),
    "quantised built-in model": (
        [*LORA, "model.load_in_4bit=true"],
        ["model.load_in_4bit: builtin:bert is too small to be quantised: name another"],
    ),
    "code of a built-in model": (
        [*LORA, "model.trust_remote_code=true"],
        ["model.trust_remote_code: would do nothing, as builtin:bert is built in"],
    ),
    "revision of a built-in model": (
        [*LORA, "model.revision=main", "model.name_or_path=builtin:bert"],
        ["model.revision: would do nothing, as builtin:bert is built in"],
    ),
    "no file for DeepSpeed": ([*LORA, "trainer.deepspeed=nowhere.json"], ["trainer.deepspeed: nowhere.json: no such"]),
    "no file for FSDP": (
        [*LORA, "trainer.fsdp=true", "trainer.fsdp_config=nowhere.json"],
        ["trainer.fsdp_config: nowhere.json: no such file (from "],
    ),
    "option of FSDP": (
        [*LORA, "trainer.fsdp=full_shrad"],
        ["trainer.fsdp: must be a valid boolean", "no option 'full_shrad'; did you mean 'full_shard'?"],
    ),
    "constant rate with a warm-up": (
        [*LORA, "trainer.lr_scheduler_type=constant", "trainer.warmup_steps=100"],
        ["trainer: lr_scheduler_type=constant has no warm-up: set trainer.warmup_steps to 0"],
    ),
    "steps between evaluations at epochs": (
        [*LORA, "trainer.eval_steps=10"],
        ["trainer: eval_steps=10 would do nothing: set trainer.eval_strategy to steps, which is epoch"],
    ),
    "how to recompute nothing": (
        [*LORA, "trainer.gradient_checkpointing_kwargs={use_reentrant: true}"],
        ["gradient_checkpointing_kwargs={'use_reentrant': True} would do nothing without gradient_checkpointing"],
    ),
    "improvement that nobody waits for": (
        [*LORA, "trainer.early_stopping_threshold=0.1"],
        ["trainer: early_stopping_threshold=0.1 would do nothing without early_stopping_patience"],
    ),
    "warm-up of one step": (
        [*LORA, "trainer.max_steps=1", "trainer.warmup_steps=1"],
        ["trainer: warmup_steps=1 begins with a learning rate of 0, and the run has one step only"],
    ),
    "no step": ([*LORA, "trainer.max_steps=0"], ["trainer.max_steps: must be at least 1, or -1 (got 0)"]),
    "no file of a split": ([*LORA, "data.train=/nowhere.csv"], ["data.train: /nowhere.csv: no such file"]),
    "scheduler of one trial": (
        ["-m", *LORA, "trainer.lr_scheduler_type=linear,linaer"],
        ["1 of 2 trials would fail", "did you mean 'linear'"],
    ),
    "data of one trial": (
        ["-m", *LORA, "data.path=null,/nowhere"],
        ["1 of 2 trials would fail", "data.path: /nowhere: no such file"],
    ),
    "null for a preset": ([*LORA, "data=null"], ["data: takes a name, not null", "~data"]),
    "null for a method": (["+method=null", "task=seq_cls"], ["method: takes a name, not null"]),
    "null for an experiment": ([*LORA, "experiment=null"], ["experiment: takes a name, not null"]),
    "null for a launcher": ([*LORA, "hydra/launcher=null"], ["hydra/launcher: takes a name, not null"]),
    "null among presets": (["-m", *LORA, "data=sample,null"], ["data: takes a name, not null"]),
    "package without a group": ([*LORA, "@x=1"], ["cannot read '@x=1': expected group@package=name"]),
    "deleted by a number": ([*LORA, "~data=1"], ["data: takes a name, not 1, if any: ~data"]),
    "config path": (["--config-path", "nowhere", "-cn", "x"], ["--config-path ", "/nowhere: no such directory"]),
    "sweep of nothing": (["-m", *LORA, "method.r=range(6,2)"], ["method.r: no value to try"]),
    "nothing to delete": ([*LORA, "~method.rnk"], ["method.rnk"]),
}


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_one_screen(result: Result, words: list[str], directory: Path) -> None:
    assert result.code == 2, result
    for word in words:
        assert word in result.err, result.err
    assert result.err.startswith("adapterkit: ")
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 24
    assert max(map(len, result.err.splitlines())) <= 200
    assert not result.out
    assert not list(directory.iterdir())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_on_one_screen(name, capsys, tmp_path):
    argv, words = MISTAKES[name]
    assert_one_screen(command(capsys, *argv), words, tmp_path)


@pytest.mark.parametrize("name", [name for name in MISTAKES if "-m" not in MISTAKES[name][0]])
def test_validate_tells_the_same(name, capsys, tmp_path):
    argv, words = MISTAKES[name]
    told = command(capsys, "validate", *argv)
    assert_one_screen(told, words, tmp_path)


def test_every_problem_is_told_at_once(capsys, tmp_path):
    argv = [
        "+method=lroa",
        "task=seqcls",
        "model.dtyp=x",
        "seed=-1",
        "data.max_length=(4)",
        "trainer.optim=sgd",
        "trainer.optim=adagrad",
    ]
    words = ["6 problems", "lroa", "seqcls", "model.dtyp", "seed: must be greater", "data.max_length", "given 2 times"]
    assert_one_screen(command(capsys, *argv), words, tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("zero", "ds.json: not JSON: Expecting value"),
        ("[1]", "ds.json: must be a JSON object, and is a list"),
        ('{"zero_optimization": {}}', "deepspeed is not installed: pip install deepspeed"),
    ],
)
def test_a_file_for_deepspeed_is_read(content, told, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    (tmp_path / "ds.json").write_text(content)
    result = command(capsys, "validate", *LORA, "trainer.deepspeed=ds.json")
    assert (result.code, f"trainer.deepspeed: {told}" in result.err) == (2, True), result


def test_choices_shared_by_two_problems_are_told_once(capsys):
    told = command(capsys, *LORA, "method.rnk=4", "method.alfa=4").err
    assert told.count("keys of method:") == 1


def test_a_mistake_in_a_file_is_told_with_its_line(capsys, tmp_path):
    preset = tmp_path / "mine" / "method" / "wide.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# mine\ndefaults: [lora, _self_]\n\nr: 16\nrnk: 3\nlora_dropout: 2.0\n")
    told = command(capsys, "--config-dir", str(tmp_path / "mine"), "+method=wide", "task=seq_cls")
    assert told.code == 2
    assert "method.rnk: unknown key; did you mean 'method.r'?" in told.err
    assert f"set by {preset}:5" in told.err
    assert f"set by {preset}:6" in told.err
    assert "lora_dropout: must be less than 1 (got 2.0)" in told.err


def test_a_preset_without_defaults_is_told_what_it_lacks(capsys, tmp_path):
    preset = tmp_path / "mine" / "method" / "bare.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("r: 16\n")
    told = command(capsys, "--config-dir", str(tmp_path / "mine"), "+method=bare", "task=seq_cls")
    assert told.code == 2
    assert "begin the preset with 'defaults: [<method>, _self_]'" in told.err


@pytest.mark.parametrize("argv", [[], ["validate"], ["-m", "seed=0,1"], ["validate", "-m", "seed=0,1"]])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path: a\npath: b\n", ":2: not YAML: found duplicate key path"),
        ("columns: {text: a\n", ":2: not YAML: "),
    ],
)
def test_a_file_that_is_not_yaml_is_told_with_its_line(argv, text, told, capsys, tmp_path):
    preset = tmp_path / "mine" / "data" / "broken.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(text)
    verb = [word for word in argv if word == "validate"]
    result = command(capsys, *verb, "--config-dir", str(tmp_path / "mine"), *LORA, "data=broken", *argv[len(verb) :])
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"adapterkit: {preset}{told}"), result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("argv", [[], ["-m", "method.r=4,8"]])
def test_a_preset_that_hides_an_installed_method_is_refused(argv, capsys, tmp_path):
    preset = tmp_path / "mine" / "method" / "lora.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("r: 16\n")
    told = command(capsys, "--config-dir", str(tmp_path / "mine"), *LORA, *argv)
    assert told.code == 2
    assert f"{preset} has the name of an installed method" in told.err
    assert "lora_mine" in told.err


@pytest.mark.parametrize("verb", [[], ["validate"]])
def test_a_primary_config_that_ours_would_hide_is_refused(verb, capsys, tmp_path):
    own = tmp_path / "mine" / "config.yaml"
    own.parent.mkdir()
    own.write_text("seed: 3\n")
    told = command(capsys, *verb, "--config-dir", "mine", *LORA)
    assert told.code == 2
    assert "mine/config.yaml would be hidden by adapterkit's own config.yaml" in told.err
    own.rename(own.with_name("other.yaml"))
    assert command(capsys, "validate", "--config-dir", "mine", *LORA).code == 0


@pytest.mark.parametrize(("flags", "key"), [([], "hydra.run.dir"), (["-m"], "hydra.sweep.dir")])
def test_a_directory_that_cannot_be_made_is_told(flags, key, capsys, monkeypatch, tmp_path):
    stand_in(monkeypatch)
    (tmp_path / "taken").write_text("a file")
    told = command(capsys, *flags, *LORA, f"{key}=taken/here")
    assert told.code == 2
    assert told.err.startswith(f"adapterkit: {key}: the directory cannot be made: [Errno")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("logging", ["none", "disabled", "stdout"])
def test_a_run_has_its_log_whatever_logging_hydra_is_told(logging, capsys, monkeypatch):
    stand_in(monkeypatch)
    assert command(capsys, *LORA, f"hydra/job_logging={logging}").code == 0


def test_a_run_that_could_not_be_begun_leaves_no_log(capsys, monkeypatch, tmp_path):
    def fail(config):
        logging.getLogger("elsewhere").warning("a line for run.log")
        raise DataError("no column 'x'")

    stand_in(monkeypatch, fail)
    assert command(capsys, *LORA).code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("the loss is NaN at step 3"), 1),
        (DataError("no column 'x'"), 2),
        (CheckFailedError("no move"), 4),
    ],
)
def test_an_error_of_the_run_is_one_screen_with_its_exit_code(error, code, capsys, monkeypatch):
    def fail(config):
        raise error

    stand_in(monkeypatch, fail)
    result = command(capsys, *LORA)
    assert (result.code, result.err) == (code, f"adapterkit: {error}\n")


def test_an_unexpected_error_has_the_traceback_of_the_run_only(capsys, monkeypatch):
    def fail(config):
        raise ZeroDivisionError("by hand")

    stand_in(monkeypatch, fail)
    result = command(capsys, *LORA)
    assert result.code == 1
    assert "ZeroDivisionError: by hand" in result.err
    assert "in fail" in result.err
    assert "run_job" not in result.err


def test_an_interrupted_run_exits_with_130(capsys, monkeypatch):
    def fail(config):
        raise KeyboardInterrupt

    stand_in(monkeypatch, fail)
    assert command(capsys, *LORA).code == 130


def test_the_whole_error_is_raised_on_request(monkeypatch):
    from adapterkit.cli import main

    def fail(config):
        raise ZeroDivisionError("by hand")

    stand_in(monkeypatch, fail)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ZeroDivisionError, match="by hand"):
        main(LORA)


LOADED = """
import sys
from adapterkit.cli import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "transformers", "datasets", "matplotlib"} & set(sys.modules)), sep=";")
"""


@pytest.mark.parametrize(
    "argv", [[*LORA, "method.rnk=4"], ["+method=lroa", "task=seq_cls"], ["-m", *LORA, "method.r=4,0"]]
)
def test_a_mistake_is_told_before_torch_is_imported(argv, tmp_path):
    assert in_new_process("-c", LOADED, *argv, cwd=tmp_path).stdout.strip() == "2;[]"


def test_a_sweep_in_several_processes_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = command(capsys, "-m", *LORA, "method.r=4,8")
    assert result.code == 2
    assert "one of 2 that train together (WORLD_SIZE)" in result.err
    assert not list(tmp_path.iterdir())
