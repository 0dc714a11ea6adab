"""Counts without weights equal published ones, and those of the model that is really built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from adapterkit import get_peft_model
from adapterkit.cli.estimate import count, measure
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import ConfigError, TargetError
from adapterkit.registry import KINDS, methods, tasks
from tests.commandline import LORA, command, in_new_process

PUBLISHED = json.loads(Path(__file__).with_name("published_counts.json").read_text())
"""Results of PEFT's own comparison on Llama-3.2-3B: config, trainable and all parameters."""

ROWS = [row for row in PUBLISHED["rows"] if row["peft_config"]["peft_type"].lower() in methods]
LORAFA = "lora/llama-3.2-3B-rank32-lorafa"
"""Its optimizer freezes the first factors, which its config does not say."""

COUNTERS = {"adalora/llama-3.2-3B-rank32": 56}
"""PEFT holds the rank of each of its 56 layers as a parameter that is not trained."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["experiment"])
def test_counts_are_the_published_ones(row):
    name = row["experiment"]
    found = count(row["peft_config"], PUBLISHED["base_model"], trainer=TrainerConfig(lorafa=name == LORAFA))
    assert found.trainable_parameters == row["trainable_params"]
    assert found.all_parameters == row["total_params"] - COUNTERS.get(name, 0)
    assert sum(each.parameters for each in found.rows) == found.trainable_parameters


def test_the_published_rows_cover_the_core_methods():
    assert {"LORA", "IA3", "OFT", "PREFIX_TUNING", "PROMPT_TUNING"} <= {row["peft_config"]["peft_type"] for row in ROWS}


BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}


def test_counts_and_bytes_are_those_of_a_real_model():
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 3, "target_modules": ["query", "dense"]}
    found = count(config, BERT)
    base = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    weights = sum(p.numel() for p in base.parameters())
    model = get_peft_model(base, methods["lora"].from_dict(config))
    assert (found.trainable_parameters, found.all_parameters) == model.get_nb_trainable_parameters()
    assert found.base_bytes == 4 * weights
    assert found.adapter_bytes == 4 * found.trainable_parameters
    assert found.training_bytes == found.base_bytes + 16 * found.trainable_parameters
    assert {(row.name, row.count) for row in found.rows} >= {
        ("bert.encoder.layer.*.attention.self.query", 2),
        ("bert.encoder.layer.*.intermediate.dense", 2),
        ("classifier", 1),
    }


def test_a_model_on_disk_is_counted_from_its_config_alone(tmp_path, capsys):
    transformers.BertConfig(**BERT).save_pretrained(tmp_path / "model")
    (tmp_path / "adapter.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    files = ["--config", str(tmp_path / "adapter.json"), "--model", str(tmp_path / "model" / "config.json")]
    told = command(capsys, "estimate", *files, "--task", "seq_cls", "--json")
    assert told.code == 0, told.err
    by_override = command(capsys, "estimate", *LORA, "method.r=2", f"model.name_or_path={tmp_path / 'model'}", "--json")
    assert json.loads(told.out) == json.loads(by_override.out)
    fewer = command(capsys, "estimate", *files, "--task", "seq_cls", "--json", "trainer.lorafa=true")
    assert json.loads(fewer.out)["trainable_parameters"] < json.loads(told.out)["trainable_parameters"]
    for wrong in ("trainer.lorafa=4x", "trainer.lorafaa=true", "method.r=4"):
        refused = command(capsys, "estimate", *files, wrong)
        assert refused.code == 2
        assert wrong in refused.err


def test_what_an_optimizer_leaves_as_it_is_does_not_count(tmp_path, capsys):
    counts = {}
    for words in ((), ("trainer.lorafa=true",), ("trainer.loraplus_lr_ratio=4",)):
        counts[words] = json.loads(command(capsys, "estimate", *LORA, "method.r=2", *words, "--json").out)
    whole, fewer, plus = (found["trainable_parameters"] for found in counts.values())
    assert fewer < whole == plus
    assert len({found["adapter_bytes"] for found in counts.values()}) == 1
    told = command(capsys, "estimate", "+method=ia3", "task=seq_cls", "trainer.lorafa=true")
    assert told.code == 2
    assert "trainer.lorafa: IA3 has no such optimizer" in told.err


def test_the_screen_has_targets_and_totals(capsys):
    told = command(capsys, "estimate", *LORA, "method.r=4").out
    assert "bert.encoder.layer.*.attention.self.query  linear 128 x 128  2" in told
    assert "trainable parameters  4,354 (" in told
    for word in ("all parameters", "adapter file", "base weights", "training with AdamW"):
        assert word in told


def test_prompts_are_counted_as_one_target():
    base = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    found = measure(base, methods["prefix_tuning"](task_type="SEQ_CLS", num_virtual_tokens=3))
    assert [(row.name, row.count) for row in found.rows if row.name != "classifier"] == [("(inputs)", 1)]
    assert found.rows[-1].parameters == 3 * 2 * 2 * 32


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--config", "x.json"], "--config and --model together"),
        (["--config", "x.json", "--model", "y.json", "seed=1"], "not both"),
        (["--config", "x.json", "--model", "y.json"], "x.json cannot be read as JSON"),
        ([*LORA, "method.rnk=1"], "did you mean 'method.r'"),
        ([*LORA, "method.target_modules=[querry]"], "did you mean 'query'"),
    ],
)
def test_mistakes_are_told(argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = command(capsys, "estimate", *argv)
    assert told.code == 2
    assert word in told.err


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="no configuration of a transformers model"):
        count({"peft_type": "LORA"}, {"model_type": "no_such_model"})
    with pytest.raises(TargetError, match="nowhere"):
        count({"peft_type": "LORA", "target_modules": ["nowhere"]}, BERT)


def test_a_mistake_imports_no_torch(tmp_path):
    code = "import sys; from adapterkit.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    assert in_new_process("-c", code, "estimate", *LORA, "method.r=0", cwd=tmp_path).stdout.strip() == "2 False"


def test_every_task_has_a_model_to_estimate_on(capsys):
    for task in KINDS["task"]:
        method = ["+method=prefix_tuning", "method.num_virtual_tokens=2"]
        told = command(capsys, "estimate", *method, f"task={task}", "--json")
        assert json.loads(told.out)["trainable_parameters"] > 0, tasks[task]
