"""The model card: PEFT's metadata, what the run knows, and what a person added to it."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import adapterkit
from adapterkit import LoraConfig, get_peft_model
from adapterkit.errors import CheckpointError
from adapterkit.hub.card import read_card, write_card
from tests.parity.helpers import peft, quiet

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}


def llama():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=1))
    model.name_or_path = model.config._name_or_path = "someone/base"
    return model


def adapted(library=adapterkit, base=None):
    config = library.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return library.get_peft_model(base or llama(), config)


def test_metadata_is_pefts(tmp_path):
    with quiet():
        adapted(peft).save_pretrained(tmp_path / "theirs")
    adapted().save_pretrained(tmp_path / "ours")
    mine, theirs = (ModelCard.load(tmp_path / who / "README.md").data.to_dict() for who in ("ours", "theirs"))
    assert mine == theirs
    assert mine["library_name"] == "peft"
    assert mine["base_model"] == "someone/base"
    assert mine["pipeline_tag"] == "text-generation"


def test_what_a_person_wrote_stays(tmp_path):
    model = adapted()
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\ntags:\n- mine\n---\n# My adapter\n\nTold at length.\n")
    model.save_pretrained(tmp_path)
    metadata, text = read_card(path)
    assert metadata["license"] == "mit"
    assert {"mine", "lora"} <= set(metadata["tags"])
    assert text.startswith("# My adapter\n\nTold at length.\n")
    path.write_text(path.read_text() + "\nAnd a last word.\n")
    once = path.read_text()
    model.save_pretrained(tmp_path)
    assert path.read_text() == once


def test_versions_metrics_and_quantisation(tmp_path):
    base = llama()
    base.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    model = adapted(base=base)
    write_card(tmp_path, model, metrics={"accuracy": 0.5})
    write_card(tmp_path, model, metrics={"accuracy": 0.875})
    text = (tmp_path / "README.md").read_text()
    assert f"- adapterkit {adapterkit.__version__}" in text
    assert "- accuracy: 0.875" in text
    assert "- accuracy: 0.5" not in text
    assert "- load_in_4bit: True" in text
    results = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]
    assert results["metrics"] == [{"type": "accuracy", "value": 0.875}]


def test_a_card_without_metadata_is_text(tmp_path):
    (tmp_path / "README.md").write_text("only words\n")
    adapted().save_pretrained(tmp_path)
    assert read_card(tmp_path / "README.md")[1].startswith("only words\n")


def test_a_custom_model_has_no_base(tmp_path):
    get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"])).save_pretrained(tmp_path)
    metadata, _ = read_card(tmp_path / "README.md")
    assert metadata == {"library_name": "peft", "tags": ["lora"]}


@pytest.mark.parametrize("head", ["a: [", "- only\n- a list"])
def test_broken_metadata_is_named(tmp_path, head):
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\ntext\n")
    with pytest.raises(CheckpointError, match=r"README.md: the metadata at the top is no"):
        adapted().save_pretrained(tmp_path)
