"""A run from its configuration to its directory, for every task."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForSequenceClassification

from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.config.layer import LayerConfig
from adapterkit.config.run import ModelConfig, run_config
from adapterkit.errors import CheckFailedError, CheckpointError, ConfigError, DataError, TrainingError
from adapterkit.model import PeftModel
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.view import LayerView
from adapterkit.registry import tasks
from adapterkit.train import layout
from adapterkit.train.models import load_base, load_tokenizer
from adapterkit.train.reload import load_config, load_run
from adapterkit.train.run import run
from adapterkit.train.trainer import RunTrainer
from tests.training import SHORT, short_run, trained

TASKS = ["seq_cls", "token_cls", "causal_lm", "seq_2_seq_lm", "question_ans", "feature_extraction"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("outputs") / "run"
    run(short_run(), directory, quiet=True)
    return directory


@pytest.mark.parametrize("task", TASKS)
def test_every_task_writes_its_directory(tmp_path: Path, task: str) -> None:
    summary = run(short_run(task), tmp_path, quiet=True)
    metric = tasks[task].default_metric
    assert summary["status"] == "ok"
    assert summary["metric"] == metric
    assert summary["greater_is_better"] == tasks[task].greater_is_better
    assert {metric, f"test_{metric}", "loss"} <= summary["metrics"].keys()
    measured = {name.removeprefix("test_") for name in summary["metrics"]}
    assert measured <= {*tasks[task].measures, "loss"}
    assert metric in summary["baseline"]
    assert 0 < summary["trainable_parameters"] < summary["all_parameters"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "metrics.jsonl", "summary.json", "run.log", "adapter", "checkpoints", "plots",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"loss.png", f"{metric}.png"}
    written = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert summary["adapter_bytes"] == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size


def test_checkpoints_hold_the_adapter_alone(finished: Path) -> None:
    folders = sorted((finished / layout.CHECKPOINTS).iterdir())
    assert [path.name for path in folders] == ["checkpoint-4", "checkpoint-8"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "README.md", "trainable.safetensors", "optimizer.pt",
            "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete",
        }  # fmt: skip


def test_manifest_and_summary(finished: Path) -> None:
    manifest = layout.read_manifest(finished)
    assert manifest["status"] == "ok"
    assert manifest["started"] < manifest["ended"]
    assert manifest["packages"].keys() >= {"adapterkit", "torch", "transformers"}
    assert manifest["plugins"]["method"].startswith("lora (adapterkit ")
    assert manifest["data"]["examples"] == {"train": 64, "validation": 16, "test": 16}
    assert manifest["base"]["name"] == "builtin:bert"
    assert manifest["timings"].keys() >= {"data", "model", "training", "evaluation"}
    assert manifest["peak_memory"]["process"] > 1e8
    steps = [entry["step"] for entry in layout.read_metrics(finished) if "loss" in entry]
    assert steps == [2, 4, 6, 8]


def test_the_same_run_twice(finished: Path, tmp_path: Path) -> None:
    run(load_config(finished), tmp_path, quiet=True)
    ours, theirs = trained(finished), trained(tmp_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before, after = (json.loads((path / layout.SUMMARY).read_text()) for path in (finished, tmp_path))
    assert before["metrics"] == after["metrics"]
    marks = [layout.read_manifest(path) for path in (finished, tmp_path)]
    assert marks[0]["base"] == marks[1]["base"]
    assert marks[0]["data"] == marks[1]["data"]


def test_the_seed_decides(finished: Path, tmp_path: Path) -> None:
    run(short_run(seed=1), tmp_path, quiet=True)
    name = next(name for name in trained(finished) if "lora_A" in name)
    assert not torch.equal(trained(finished)[name], trained(tmp_path)[name])
    assert layout.read_manifest(tmp_path)["base"] == layout.read_manifest(finished)["base"]


def test_loaded_run_is_the_trained_model(finished: Path) -> None:
    loaded = load_run(finished)
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    ours, theirs = get_peft_model_state_dict(loaded.model), trained(finished)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    inputs = loaded.tokenizer(["the plot was good"], return_tensors="pt")
    with torch.no_grad():
        assert loaded.model(**inputs).logits.shape == (1, 2)


def test_loaded_run_finds_its_base_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    run(short_run(model={"name_or_path": "base"}), tmp_path / "run", quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_run(tmp_path / "run").model.get_base_model().name_or_path == str(tmp_path / "base")


def test_saved_base_of_a_user(tmp_path: Path) -> None:
    task = tasks["seq_cls"]()
    load_base(ModelConfig(), task, num_labels=2).save_pretrained(tmp_path / "base")
    load_tokenizer(ModelConfig(), task).save_pretrained(tmp_path / "base")
    config = short_run(model={"name_or_path": str(tmp_path / "base")}, adapter_name="mine")
    summary = run(config, tmp_path / "run", quiet=True)
    assert summary["adapter_bytes"] > 0
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter" / "mine", adapter_name="mine")
    assert model.active_adapter == "mine"


def saved_base(directory: Path, *, num_labels: int = 2, tokenizer: bool = True) -> Path:
    task = tasks["seq_cls"]()
    load_base(ModelConfig(), task, num_labels=num_labels).save_pretrained(directory)
    if tokenizer:
        load_tokenizer(ModelConfig(), task).save_pretrained(directory)
    return directory


def test_a_directory_has_no_revision(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    for options in ({"device": "meta"}, {}):
        with pytest.raises(ConfigError, match=r"model\.revision=main would do nothing: .*base is a directory"):
            load_base(ModelConfig(name_or_path=str(base), revision="main"), tasks["seq_cls"](), **options)


def test_head_for_other_classes_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = saved_base(tmp_path / "base", num_labels=3)
    run(short_run(model={"name_or_path": str(base)}), tmp_path / "run")
    said = f"classifier.weight has the shape (3, 128) in {base}, and (2, 128) here: made anew"
    assert said in capsys.readouterr().err
    ours, theirs = get_peft_model_state_dict(load_run(tmp_path / "run").model), trained(tmp_path / "run")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_any_other_part_of_another_size_is_refused(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] * 2}))
    with pytest.raises(
        ConfigError, match=r"intermediate\.dense\.bias has the shape \(\d+,\) in .*base, and \(\d+,\) here"
    ):
        run(short_run(model={"name_or_path": str(base)}), tmp_path / "run", quiet=True)


def test_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", tokenizer=False)
    with pytest.raises(ConfigError, match=r"base has no tokenizer, .*: set model\.tokenizer"):
        run(short_run(model={"name_or_path": str(base)}), tmp_path / "run", quiet=True)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"llama has no tokenizer, .*: set model\.tokenizer"):
        load_tokenizer(ModelConfig(tokenizer=str(tmp_path / "llama")), tasks["seq_cls"]())


@pytest.mark.parametrize(("strange", "refused"), [(19, True), (10, False)])
def test_tokenizer_that_does_not_know_the_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], strange: int, refused: bool
) -> None:
    words = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5, "film": 6}
    base = saved_base(tmp_path / "base", tokenizer=False)
    (base / "vocab.txt").write_text("\n".join(words))
    text = " ".join(["strange"] * strange + ["film"] * (20 - strange))
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"{text},{index % 2}\n" for index in range(80)))
    config = short_run(model={"name_or_path": str(base)}, data={"path": str(tmp_path / "data.csv")}, dry_run=True)
    said = f"{strange / 20:.0%} of the tokens of the training texts are unknown to the tokenizer of {base}"
    if refused:
        with pytest.raises(ConfigError, match=f"{said}; set model.tokenizer"):
            run(config, tmp_path / "run", quiet=True)
    else:
        run(config, tmp_path / "run")
        assert said in capsys.readouterr().err


class TestMetricThatSuitsTheData:
    def test_numbers(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = [f"the film was {'good' if index % 2 else 'bad'} {index},{index % 2 + 0.25}\n" for index in range(80)]
        (tmp_path / "data.csv").write_text("text,label\n" + "".join(lines))
        summary = run(short_run(data={"path": str(tmp_path / "data.csv")}), tmp_path / "run")
        assert (summary["metric"], summary["greater_is_better"]) == ("pearson", True)
        assert summary["baseline_name"] == "mean"
        assert "labels are numbers: regression, judged by pearson" in capsys.readouterr().err
        chosen = short_run(data={"path": str(tmp_path / "data.csv")}, trainer={"metric_for_best_model": "mse"})
        assert run(chosen, tmp_path / "other", quiet=True)["greater_is_better"] is False

    def test_parts_of_speech(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = [("the", "DET"), ("film", "NOUN"), ("was", "VERB"), ("good", "ADJ")]
        sentences = ["".join(f"{w}\t{t}\n" for w, t in words[index % 3 :]) for index in range(80)]
        (tmp_path / "data.conll").write_text("\n".join(sentences))
        summary = run(short_run("token_cls", data={"path": str(tmp_path / "data.conll")}), tmp_path / "run")
        assert summary["metric"] == "accuracy"
        assert 0 < summary["metrics"]["f1"] <= 1
        assert summary["baseline"]["accuracy"] > 0
        assert "no tag begins with B- or I-: single tags are scored" in capsys.readouterr().err


def test_prompts_are_trained(tmp_path: Path) -> None:
    config = short_run("causal_lm", "prefix_tuning", method={"num_virtual_tokens": 4})
    assert run(config, tmp_path, quiet=True)["status"] == "ok"


class TestDryRun:
    def test_counts_without_weights(self, finished: Path, tmp_path: Path) -> None:
        summary = run(short_run(dry_run=True), tmp_path / "dry", quiet=True)
        whole = json.loads((finished / layout.SUMMARY).read_text())
        for key in ("trainable_parameters", "all_parameters"):
            assert summary[key] == whole[key]
        assert not (tmp_path / "dry" / layout.ADAPTER).exists()
        with pytest.raises(CheckpointError, match="has no adapter: a dry run"):
            load_run(tmp_path / "dry")

    def test_finds_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="querry"):
            run(short_run(dry_run=True, method={"target_modules": ["querry"]}), tmp_path, quiet=True)

    def test_says_everything_once_in_its_log(self, tmp_path: Path) -> None:
        log = tmp_path / "run" / layout.LOG
        log.parent.mkdir()
        begun = logging.FileHandler(log)  # as Hydra's
        logging.getLogger().addHandler(begun)
        try:
            run(short_run(dry_run=True), log.parent, quiet=True)
            logging.getLogger("elsewhere").warning("afterwards")
        finally:
            logging.getLogger().removeHandler(begun)
            begun.close()
        assert log.read_text().count("parameters are trained") == 1
        assert "afterwards" in log.read_text()

    def test_leaves_nothing_of_a_run_that_could_not_begin(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            run(short_run(method={"target_modules": ["querry"]}), tmp_path / "outputs" / "today" / "now", quiet=True)
        assert not list(tmp_path.iterdir())


class Unused(LayerAdapter):
    """A third party's, whose forward leaves its parameter out."""

    def __init__(self, config: LayerConfig, layer: LayerView) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.ones(layer.out_features))

    def adapt_output(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y.clone()


class UnusedConfig(LayerConfig):
    """A third party's config."""

    adapter: ClassVar[str] = "tests.train.test_run:Unused"
    peft_type: Literal["UNUSED"] = "UNUSED"


class TestFailure:
    @pytest.mark.parametrize(
        ("task", "message"),
        [
            ("seq_cls", "after 2 steps these have received no gradient: .*query.adapters.default.scale"),
            ("feature_extraction", "the loss depends on nothing that is trained"),
        ],
    )
    def test_adapter_that_is_not_used_in_a_run_of_two_steps(self, task: str, message: str, tmp_path: Path) -> None:
        trainer = {**SHORT["trainer"], "max_steps": 2, "load_best_model_at_end": False}  # nothing loads such a method
        sections = {**SHORT, "trainer": trainer, "method": {}, "task": {}}
        config = run_config(UnusedConfig, tasks[task]).model_validate(sections)
        with pytest.raises(CheckFailedError, match=message):
            run(config, tmp_path, quiet=True)
        assert not (tmp_path / layout.ADAPTER).exists()

    def test_loss_that_is_no_number(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = RunTrainer.compute_loss

        def broken(self: RunTrainer, *args: object, **kwargs: object) -> object:
            loss = plain(self, *args, **kwargs)  # type: ignore[arg-type]
            return loss * float("nan") if self.state.global_step == 3 and not kwargs.get("return_outputs") else loss

        monkeypatch.setattr(RunTrainer, "compute_loss", broken)
        with pytest.raises(TrainingError, match="the loss is nan in step 4"):
            run(short_run(), tmp_path, quiet=True)
        manifest, summary = layout.read_manifest(tmp_path), json.loads((tmp_path / layout.SUMMARY).read_text())
        assert (manifest["status"], summary["status"]) == ("failed", "failed")
        assert "the loss is nan" in summary["error"]
        assert "TrainingError" in (tmp_path / layout.LOG).read_text()
        assert not (tmp_path / layout.ADAPTER).exists()

    def test_adapter_that_does_not_move(self, tmp_path: Path) -> None:
        still = {"learning_rate": 1e-30, "max_steps": 5}
        with pytest.raises(CheckFailedError, match="after 5 steps"):
            run(short_run(trainer=still), tmp_path, quiet=True)
        assert layout.read_manifest(tmp_path)["status"] == "failed"

    def test_missing_data_leaves_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere"):
            run(short_run(data={"path": str(tmp_path / "nowhere")}), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    def test_metric_of_regression_for_classes(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="metric_for_best_model=mse: this task measures accuracy, f1, loss, mcc"):
            run(short_run(trainer={"metric_for_best_model": "mse"}), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    def test_task_type_of_another_task(self) -> None:
        with pytest.raises(ValidationError, match=r"method\.task_type\n  does not go with task=seq_cls"):
            short_run(method={"task_type": "CAUSAL_LM"})

    def test_a_directory_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="not the directory of a run"):
            load_run(tmp_path)


def test_plain_lines_and_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(short_run(), tmp_path)
    shown = capsys.readouterr()
    assert "step 8/8" in shown.err
    for part in ("query x 2, value x 2, classifier", "majority class", "accuracy", "load_run"):
        assert part in shown.out


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_run_of_one_step_learns(tmp_path: Path, method: str) -> None:
    result = run(
        short_run("seq_cls", method, trainer={"max_steps": -1, "num_train_epochs": 0.01}), tmp_path, quiet=True
    )
    assert result["status"] == "ok"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 3.0}, r"trainer\.warmup_steps=3 begins with a learning rate of 0, and the run has one step"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 65}, r"trainer\.dataloader_drop_last: 64 "),
    ],
)
def test_a_run_that_could_not_learn_is_refused_before_it(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(short_run(trainer={"max_steps": -1, "num_train_epochs": 0.01, **changes}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_needs_more_steps_is_refused_before_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method: AdaLoRA: tinit=9 and tfinal=0 leave no step of 8"):
        run(short_run("seq_cls", "adalora", method={"tinit": 9}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("lora", {"data": {"max_length": 2}}, r"data\.max_length=2: no token of a text fits in beside 2 special ones"),
        (
            "prefix_tuning",
            {"method": {"num_virtual_tokens": 999}},
            r"method\.num_virtual_tokens=999: the model has \d+ positions, which leaves no token of a text",
        ),
    ],
)
def test_texts_without_a_token_are_refused(tmp_path: Path, method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(short_run("seq_cls", method, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"optim": "schedule_free_sgd"}}, r"trainer\.optim=schedule_free_sgd: .*schedulefree"),
        (
            {"model": {"attn_implementation": "flash_attention_2"}},
            r"model\.name_or_path=builtin:bert .*FlashAttention2",
        ),
    ],
)
def test_packages_that_are_not_installed_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(short_run(**changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_decoder_that_needs_a_text_of_its_own_gives_no_features(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"builtin:t5: an encoder-decoder whose decoder needs a text of its own"):
        run(short_run("feature_extraction", model={"name_or_path": "builtin:t5"}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.name_or_path=builtin:bert: an encoder, .* needs a decoder"):
        run(short_run("causal_lm", model={"name_or_path": "builtin:bert"}), tmp_path / "run", quiet=True)
