"""What our trainer does otherwise than transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    LlamaConfig,
    T5ForConditionalGeneration,
    Trainer,
)

from adapterkit.config.run import RunConfig
from adapterkit.errors import ConfigError
from adapterkit.train.adapter_trainer import takes_counts
from adapterkit.train.directory import RunDirectory
from adapterkit.train.pipeline import IGNORED
from adapterkit.train.run import make_trainer, prepare, run
from adapterkit.train.trainer import RunTrainer
from tests.training import short_run, trained


def trainer_of(config: RunConfig, directory: Path) -> RunTrainer:
    record = RunDirectory(directory, config)
    prepared = prepare(config, record)
    train, validation = prepared.inputs.features("train"), prepared.inputs.features("validation")
    return make_trainer(config, prepared, train, validation, record=record, checkpoint=None)


@pytest.mark.parametrize(
    ("task", "smoothing"),
    [
        ("seq_cls", 0),
        ("seq_cls", 0.2),
        ("causal_lm", 0),
        ("causal_lm", 0.2),
        ("feature_extraction", 0),
        ("question_ans", 0),
    ],
)
def test_accumulated_batches_have_the_gradient_of_their_mean(tmp_path: Path, task: str, smoothing: float) -> None:
    trainer = trainer_of(short_run(task, trainer={"label_smoothing_factor": smoothing}), tmp_path)
    rows = [trainer.train_dataset[index] for index in range(8)]
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer.current_gradient_accumulation_steps = 2
    trainer.create_optimizer()
    halves = [trainer.data_collator(rows[:4]), trainer.data_collator(rows[4:])]
    counts = trainer._get_num_items_in_batch(halves, torch.device("cpu"))
    for half in halves:
        trainer.training_step(trainer.model, dict(half), counts)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    found = torch.cat([p.grad.flatten() for p in parameters])
    trainer.model.zero_grad()
    trainer.model.train()
    if task == "causal_lm" and not smoothing:  # the mean over all labels, wherever they are
        loss = trainer.model(**trainer.data_collator(rows)).loss
    else:
        loss = sum(trainer.compute_loss(trainer.model, dict(half)) for half in halves) / 2
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in parameters])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_labels_are_smoothed_against_their_own_logits(tmp_path: Path) -> None:
    smoothing = 0.3
    config = short_run("causal_lm", trainer={"label_smoothing_factor": smoothing})
    trainer = trainer_of(config, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    found = trainer.compute_loss(trainer.model, dict(batch))
    logits = trainer.model(**batch).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    kept = labels != IGNORED
    likely = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = -((1 - smoothing) * likely + smoothing * logits.mean(-1))[kept].mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("task", ["question_ans", "feature_extraction"])
def test_losses_that_cannot_be_smoothed(task: str) -> None:
    with pytest.raises(ValidationError, match=f"the loss of {task} cannot be smoothed"):
        short_run(task, trainer={"label_smoothing_factor": 0.1})


def test_regression_is_trained(tmp_path: Path) -> None:
    lines = "".join(f"word{'!' * (index % 7)}\t{index % 7 / 10:.1f}\n" for index in range(80))
    (tmp_path / "train.tsv").write_text(lines)
    config = short_run(data={"path": str(tmp_path / "train.tsv")}, trainer={"metric_for_best_model": "mse"})
    summary = run(config, tmp_path / "run", quiet=True)
    assert summary["metrics"].keys() >= {"pearson", "spearman", "mse"}
    assert summary["greater_is_better"] is False
    config.trainer.label_smoothing_factor = 0.1
    with pytest.raises(ConfigError, match="the loss of this task, or of regression, cannot be smoothed"):
        run(config, tmp_path / "smoothed", quiet=True)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    run(short_run(), tmp_path / "plain", quiet=True)
    run(short_run(trainer={"gradient_checkpointing": True}), tmp_path / "saving", quiet=True)
    ours, theirs = trained(tmp_path / "plain"), trained(tmp_path / "saving")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_which_models_count_labels() -> None:
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    llama = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=8, **small))
    assert takes_counts(llama)
    assert not takes_counts(BertForSequenceClassification.__new__(BertForSequenceClassification))
    assert not takes_counts(T5ForConditionalGeneration.__new__(T5ForConditionalGeneration))


def test_the_best_checkpoint_is_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([0.9, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(
        "adapterkit.tasks.seq_cls.pipeline.SeqClsPipeline.score",
        lambda *_: {"accuracy": next(falling)},
    )
    monkeypatch.setattr("adapterkit.tasks.seq_cls.pipeline.SeqClsPipeline.baseline", lambda *_: {"accuracy": 0.5})
    run(short_run(), tmp_path, quiet=True)
    best = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
    last = load_file(tmp_path / "checkpoints" / "checkpoint-8" / "adapter_model.safetensors")
    found = trained(tmp_path)
    assert all(torch.equal(found[name], best[name]) for name in best)
    assert any(not torch.equal(found[name], last[name]) for name in last)


@pytest.mark.parametrize("task", ["seq_cls", "causal_lm"])
def test_what_is_counted_and_padded_the_short_way_is_what_the_libraries_give(tmp_path: Path, task: str) -> None:
    trainer = trainer_of(short_run(task), tmp_path)
    tokenizer, rows = trainer.pipeline.tokenizer, [trainer.train_dataset[index] for index in range(5)]
    batch = trainer.pipeline.batch(rows)
    for _ in range(2):
        assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch) > 0
    assert trainer.floating_point_ops({}) == 0
    names = [name for name in tokenizer.model_input_names if name in batch]
    columns = {name: [row[name] for row in rows] for name in names}
    wanted = tokenizer.pad(columns, padding_side="right", return_tensors="pt")
    for name in names:
        assert batch[name].dtype == wanted[name].dtype
        assert torch.equal(batch[name], wanted[name])
