"""``merge``: what is written is a plain model that computes what the adapter does, or nothing is there."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers import BertForSequenceClassification as Classifier

from adapterkit import PeftModel, get_peft_model
from adapterkit.config.layer import LayerConfig
from adapterkit.config.run import ModelConfig
from adapterkit.registry import methods, tasks
from adapterkit.train import probes
from adapterkit.train.models import load_base, load_tokenizer
from adapterkit.train.run import run
from tests.commandline import command, in_new_process
from tests.parity.helpers import add_noise, peft, quiet
from tests.training import short_run

TASKS = ["seq_cls", "token_cls", "causal_lm", "seq_2_seq_lm", "question_ans", "feature_extraction"]
BASE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def adapter(directory: Path, config, *, task="seq_cls", labels=2) -> Path:
    """A saved adapter away from its start, on a built-in base."""
    chosen = tasks[task]()
    options = {"num_labels": labels} if task == "seq_cls" else {}
    model = get_peft_model(load_base(ModelConfig(), chosen, **options), config)
    add_noise(model)
    model.save_pretrained(directory)
    return directory


def merges(name: str) -> bool:
    config = methods[name](**methods[name].example)
    adapts = isinstance(config, LayerConfig) and "linear" in config.adapter_class().kinds
    return adapts and config.adapter_class().mergeable


MERGE = [name for name in methods if merges(name)]
DO_NOT = [name for name in methods if name not in MERGE]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("outputs") / "run"
    run(short_run(), directory, quiet=True)
    return directory


def outputs(model, batch):
    with torch.no_grad():
        return model.eval()(**batch)[0]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_plain_model(task, capsys, tmp_path):
    run(short_run(task), tmp_path / "run", quiet=True)
    told = command(capsys, "merge", str(tmp_path / "run"), "--to", str(tmp_path / "out"))
    assert told.code == 0, told.err
    assert "layers" in told.out
    assert "differ by" in told.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if "adapter" in name]


def test_a_run_keeps_its_labels_and_its_outputs(finished, capsys, tmp_path):
    told = command(capsys, "merge", str(finished), "--to", str(tmp_path / "out"))
    assert told.code == 0, told.err
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(plain) is Classifier
    assert plain.config.id2label == {0: "negative", 1: "positive"}
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["the plot was good"], return_tensors="pt")
    base = load_base(ModelConfig(), tasks["seq_cls"](), num_labels=2)
    adapted = PeftModel.from_pretrained(base, finished / "adapter")
    before = outputs(load_base(ModelConfig(), tasks["seq_cls"](), num_labels=2), batch)
    torch.testing.assert_close(outputs(plain, batch), outputs(adapted, batch))
    assert not torch.allclose(outputs(plain, batch), before, atol=1e-3)


def test_a_run_its_adapter_and_its_checkpoints(finished, capsys, tmp_path):
    def written(place: Path) -> bytes:
        told = command(capsys, "merge", str(place), "--to", str(tmp_path / place.name))
        assert told.code == 0, told.err
        return (tmp_path / place.name / "model.safetensors").read_bytes()

    first, last = (written(finished / "checkpoints" / f"checkpoint-{step}") for step in (4, 8))
    assert written(finished) == written(finished / "adapter")
    assert first != last
    assert (tmp_path / "adapter" / "model.safetensors").read_bytes() in (first, last)


@pytest.mark.parametrize("name", MERGE)
def test_every_method_that_merges(name, capsys, tmp_path):
    config = methods[name]
    saved = adapter(tmp_path / "adapter", config(**config.example, task_type="SEQ_CLS"))
    told = command(capsys, "merge", str(saved), "--to", str(tmp_path / "out"))
    assert told.code == 0, told.err
    assert told.out.startswith(f"{config(**config.example).peft_type} merged into builtin:bert: ")


@pytest.mark.parametrize("name", DO_NOT)
def test_every_method_that_does_not_says_so(name, capsys, tmp_path):
    config = methods[name]
    chosen, task = config(**config.example, task_type="CAUSAL_LM"), "causal_lm"
    saved = adapter(tmp_path / "adapter", chosen, task=task)
    told = command(capsys, "merge", str(saved), "--to", str(tmp_path / "out"))
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith(f"adapterkit: {saved}: {chosen.peft_type} cannot be merged: ")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"target_modules": ["word_embeddings", "query"]},
        {"modules_to_save": ["pooler"]},
        {"trainable_token_indices": [5, 6, 7]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_lora_in_all_its_forms(fields, capsys, tmp_path):
    config = methods["lora"](**{"target_modules": ["query"], "task_type": "SEQ_CLS", **fields})
    saved = adapter(tmp_path / "adapter", config)
    assert command(capsys, "merge", str(saved), "--to", str(tmp_path / "out")).code == 0


def test_what_one_layer_cannot_merge_is_said_with_the_method(capsys, tmp_path):
    config = methods["lora"](task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    saved = adapter(tmp_path / "adapter", config, task="causal_lm")
    told = command(capsys, "merge", str(saved), "--to", str(tmp_path / "out"))
    assert told.code == 1
    assert "LORA cannot be merged here: alora_invocation_tokens" in told.err
    assert not (tmp_path / "out").exists()


def test_classes_are_read_off_the_trained_head(capsys, tmp_path):
    saved = adapter(tmp_path / "adapter", methods["lora"](task_type="SEQ_CLS"), labels=5)
    assert command(capsys, "merge", str(saved), "--to", str(tmp_path / "out")).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"].keys() == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_type_of_the_weights(dtype, finished, capsys, tmp_path):
    told = command(capsys, "merge", str(finished), "--to", str(tmp_path / "out"), "--dtype", dtype)
    assert told.code == 0, told.err
    assert f": {dtype}, " in told.out
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in plain.parameters()} == {getattr(torch, dtype)}


@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own
@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_quantised_base_becomes_plain(bits, capsys, tmp_path):
    torch.manual_seed(0)
    sizes = {**BASE, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 1000}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "base")
    load_tokenizer(ModelConfig(), tasks["causal_lm"]()).save_pretrained(tmp_path / "base")
    model = {"name_or_path": str(tmp_path / "base")}
    run(short_run("causal_lm", model={**model, "load_in_8bit": True}), tmp_path / "run", quiet=True)
    config = tmp_path / "run" / "config.yaml"
    other = config.read_text().replace("load_in_8bit: true", "load_in_8bit: false")  # on a CPU 4 bits cannot train
    config.write_text(other.replace(f"{bits}: false", f"{bits}: true"))
    told = command(capsys, "merge", str(tmp_path / "run"), "--to", str(tmp_path / "out"))
    assert told.code == 0, told.err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(plain.config, "quantization_config")
    assert {type(module) for name, module in plain.named_modules() if name.endswith("proj")} == {nn.Linear}


@pytest.fixture
def by_peft(tmp_path):
    """An adapter of PEFT's, without a task, on a saved base."""
    torch.manual_seed(0)
    BertModel(BertConfig(**BASE), add_pooling_layer=False).save_pretrained(tmp_path / "base")
    base = BertModel.from_pretrained(tmp_path / "base", add_pooling_layer=False)
    with quiet():
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", tmp_path / "base", model


def test_an_adapter_of_pefts(by_peft, capsys, tmp_path):
    saved, _, theirs = by_peft
    told = command(capsys, "merge", str(saved), "--to", str(tmp_path / "out"))
    assert told.code == 0, told.err
    assert "without a tokenizer" in told.out
    plain, batch = BertModel.from_pretrained(tmp_path / "out"), {"input_ids": torch.arange(3, 11)[None]}
    torch.testing.assert_close(outputs(plain, batch), outputs(theirs, batch))


def test_a_base_that_has_moved(by_peft, capsys, tmp_path):
    saved, base, _ = by_peft
    base.rename(tmp_path / "moved")
    told = command(capsys, "merge", str(saved), "--to", str(tmp_path / "out"))
    assert told.code == 2
    assert str(base) in told.err
    assert "--base=... says where else the base is" in told.err
    assert not (tmp_path / "out").exists()
    told = command(capsys, "merge", str(saved), "--to", str(tmp_path / "out"), "--base", str(tmp_path / "moved"))
    assert told.code == 0, told.err


def test_what_does_not_compute_the_same_is_not_left(finished, capsys, tmp_path, monkeypatch):
    def spoilt(model, directory, **options):
        directory.mkdir(exist_ok=True)
        other = copy.deepcopy(model)
        nn.init.normal_(other.classifier.weight)
        return saved(other, directory, **options)

    saved = Classifier.save_pretrained
    monkeypatch.setattr(Classifier, "save_pretrained", spoilt)
    told = command(capsys, "merge", str(finished), "--to", str(tmp_path / "deep" / "out"))
    assert told.code == 4
    assert "does not compute what the adapter does" in told.err
    assert not list(tmp_path.iterdir())


def test_the_tolerance_decides(finished, capsys, tmp_path):
    arguments = ["merge", str(finished), "--to", str(tmp_path / "out"), "--dtype", "bfloat16"]
    told = command(capsys, *arguments, "--tolerance", "1e-9")
    assert (told.code, list(tmp_path.iterdir())) == (4, [])
    assert command(capsys, *arguments, "--tolerance", "0.1").code == 0
    assert command(capsys, *arguments, "--tolerance=-1").code == 2


def test_nothing_is_written_over(finished, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    shutil.copy(tmp_path / "file", tmp_path / "full")
    for name, what in (("file", "is a file"), ("full", "is not empty")):
        told = command(capsys, "merge", str(finished), "--to", str(tmp_path / name))
        assert (told.code, what in told.err) == (2, True)
    told = command(capsys, "merge", "nowhere", "--to", str(tmp_path / "file" / "below"))
    assert (told.code, f"{tmp_path / 'file'} is a file" in told.err) == (2, True)
    (tmp_path / "empty").mkdir()
    assert command(capsys, "merge", str(finished), "--to", str(tmp_path / "empty")).code == 0


def test_what_is_no_adapter(finished, capsys, tmp_path):
    (tmp_path / "dry").mkdir()
    run(short_run(dry_run=True), tmp_path / "dry", quiet=True)
    for name in ("one", "two"):
        shutil.copytree(finished / "adapter", tmp_path / "several" / name)
    for place, words in {
        "nowhere": "no such file or directory",
        "dry/config.yaml": "is neither an adapter (adapter_config.json, adapter_model.safetensors) nor a run",
        "dry": "has no adapter: a dry run",
        "several": "has several adapters; say which: ",
    }.items():
        told = command(capsys, "merge", str(tmp_path / place), "--to", str(tmp_path / "out"))
        assert told.code in (1, 2)
        assert words in told.err
    assert not (tmp_path / "out").exists()


def test_flags_are_known_before_torch(tmp_path):
    words = ["-m", "adapterkit", "merge", "here", "--to", "there", "--dtpe", "float32"]
    told = in_new_process("-X", "importtime", *words, cwd=tmp_path)
    assert told.returncode == 2
    assert "merge has no flag '--dtpe'; did you mean '--dtype'?" in told.stderr
    assert "| torch\n" not in told.stderr
    told = in_new_process("-X", "importtime", "-m", "adapterkit", "merge", "here", "--to", "there", cwd=tmp_path)
    assert (told.returncode, "here: no such file or directory" in told.stderr, "| torch\n" in told.stderr) == (
        2,
        True,
        False,
    )


def test_a_word_too_many(finished, capsys, tmp_path):
    told = command(capsys, "merge", str(finished), "more", "--to", str(tmp_path / "out"))
    assert (told.code, "merge takes no 'more'" in told.err) == (2, True)


def test_tied_embeddings_that_were_adapted(capsys, tmp_path):
    config = methods["lora"](task_type="CAUSAL_LM", target_modules=["wte"])
    base = load_base(ModelConfig(name_or_path="builtin:gpt2"), tasks["causal_lm"]())
    assert base.config.tie_word_embeddings
    model = get_peft_model(base, config)
    add_noise(model)
    model.save_pretrained(tmp_path / "adapter")
    told = command(capsys, "merge", str(tmp_path / "adapter"), "--to", str(tmp_path / "out"))
    assert told.code == 0, told.err
    batch = {"input_ids": torch.arange(5, 15)[None]}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(plain, batch), outputs(model, batch))


def test_distance():
    one = {"logits": torch.tensor([1.0, -torch.inf, 4.0]), "mask": torch.tensor([torch.finfo(torch.float32).min])}
    two = {**one, "logits": torch.tensor([1.5, -torch.inf, 4.0])}
    assert probes.distance(one, two) == (0.5, 4.0)
    assert probes.distance(one, one).relative == 0
    assert probes.distance(one, {**one, "logits": torch.tensor([1.0, torch.nan, 4.0])}).largest == torch.inf
    with pytest.raises(AssertionError, match="the outputs are"):
        probes.distance(one, {"logits": one["logits"]})
