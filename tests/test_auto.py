"""Adapters loaded together with the base that they name."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import adapterkit
from adapterkit import AutoPeftModel, AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from adapterkit.errors import CapabilityError, CheckpointError
from adapterkit.registry import tasks
from tests.parity.helpers import add_noise

IDS = torch.arange(6).reshape(2, 3)


def tiny(path):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 20,
    }
    LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).save_pretrained(path)
    return LlamaForCausalLM.from_pretrained(path)


def saved(tmp_path, **fields):
    config = LoraConfig(r=2, target_modules=["q_proj"], **{"task_type": "CAUSAL_LM", **fields})
    model = get_peft_model(tiny(tmp_path / "base"), config)
    add_noise(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    return model(IDS).logits


@pytest.mark.parametrize("loader", [AutoPeftModel, AutoPeftModelForCausalLM])
def test_base_and_adapter_come_together(tmp_path, loader):
    expected = saved(tmp_path)
    model = loader.from_pretrained(tmp_path / "adapter", adapter_name="mine", is_trainable=True)
    assert type(model).__name__ == "PeftModelForCausalLM"
    assert type(model.get_base_model()) is LlamaForCausalLM
    assert model.active_adapter == "mine"
    assert model.get_nb_trainable_parameters()[0] > 0
    torch.testing.assert_close(model.eval()(IDS).logits, expected)


def test_options_reach_the_base_model(tmp_path):
    saved(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert model.get_base_model().dtype == torch.bfloat16


def test_without_a_task_the_config_names_the_class(tmp_path):
    expected = saved(tmp_path, task_type=None)
    model = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(model(IDS).logits, expected)


def test_only_trusted_packages_are_imported(tmp_path):
    saved(tmp_path, task_type=None)
    with pytest.raises(CheckpointError, match=r"import_allowlist=\['transformers'\]"):
        AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["diffusers"])


def test_another_task_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="an adapter for CAUSAL_LM, not for SEQ_CLS"):
        adapterkit.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")


def test_a_base_that_is_not_named_is_refused(tmp_path):
    config = BertConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=20)
    get_peft_model(BertModel(config), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="base_model_name_or_path is empty"):
        AutoPeftModel.from_pretrained(tmp_path)


def test_embeddings_grow_to_the_tokenizer(tmp_path):
    saved(tmp_path)
    vocabulary = {f"w{i}": i for i in range(25)}
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert model.get_input_embeddings().weight.shape[0] == 25


def test_the_class_itself_makes_nothing():
    with pytest.raises(CapabilityError, match="use AutoPeftModelForCausalLM"):
        AutoPeftModelForCausalLM()


def test_every_wrapper_has_its_loader():
    loaders = AutoPeftModel.__subclasses__()
    wrappers = {f"Auto{tasks[loader.task].wrapper.partition(':')[2]}" for loader in loaders}
    assert wrappers == {loader.__name__ for loader in loaders}
    assert wrappers == {f"Auto{name}" for name in adapterkit.__all__ if name.startswith("PeftModelFor")}
