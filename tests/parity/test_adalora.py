"""AdaLoRA against PEFT's: outputs, gradients, merged weights, files, and a whole training with its rank allocation."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM

from adapterkit import AdaLoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tests.parity.helpers import assert_parity, assert_same_tensors, peft, quiet, state_of
from tests.parity.layers import Net, seeded, single

COMMON = {"init_r": 4, "target_r": 2, "total_step": 10}


@pytest.mark.parametrize("layer", ["linear", "linear_no_bias", "transposed", "conv2d", "conv2d_no_bias"])
def test_every_layer_kind(layer):
    factory, inputs = single(layer)
    kwargs = {**COMMON, "lora_alpha": 5, "target_modules": ["target"]}
    assert_parity(kwargs, AdaLoraConfig, peft.AdaLoraConfig, factory, inputs)


@pytest.mark.parametrize(
    "variant",
    [{"bias": "lora_only"}, {"layers_to_transform": [0, 2]}, {"modules_to_save": ["norm"]}],
    ids=str,
)
def test_a_model_of_several_layers(variant):
    torch.manual_seed(3)
    kwargs = {**COMMON, "target_modules": ["query", "value"], **variant}
    assert_parity(kwargs, AdaLoraConfig, peft.AdaLoraConfig, seeded(Net), torch.randn(3, 5, 8))


def test_factors_that_are_all_drawn():
    factory, inputs = single("linear")  # numbers near 1 throughout, so gradients near 100
    kwargs = {**COMMON, "target_modules": ["target"], "init_lora_weights": False}
    assert_parity(kwargs, AdaLoraConfig, peft.AdaLoraConfig, factory, inputs, atol=1e-3)


FAMILIES = {
    "bart": {"d_model": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    "llama": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mt5": {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "opt": {
        "hidden_size": 8,
        "word_embed_proj_dim": 8,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets(family):
    config = AutoConfig.for_model(family, vocab_size=20, **FAMILIES[family])
    with torch.device("meta"), quiet():
        theirs = peft.get_peft_model(AutoModel.from_config(config), peft.AdaLoraConfig(**COMMON))
        ours = get_peft_model(AutoModel.from_config(config), AdaLoraConfig(**COMMON))
    assert ours.targeted_module_names == theirs.targeted_module_names


def llama() -> nn.Module:
    torch.manual_seed(7)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))


def train(model, config, steps=12):
    """The loss of every step, the ranks in use after it, and the update of the schedule in PEFT's place for it."""
    ids = torch.arange(24).reshape(3, 8) % 20
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses, patterns = [], []
    for step in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
        patterns.append({k.replace(".default", ""): v for k, v in (config().rank_pattern or {}).items()})
    return losses, patterns


@pytest.mark.parametrize(
    "schedule", [{}, {"tinit": 2, "tfinal": 3, "deltaT": 2}, {"orth_reg_weight": 0.0, "tfinal": 4}]
)
def test_a_whole_training(schedule, tmp_path):
    kwargs = {**COMMON, "total_step": 10, "lora_alpha": 16, **schedule, "task_type": "CAUSAL_LM"}
    with quiet():
        theirs = peft.get_peft_model(llama(), peft.AdaLoraConfig(**kwargs)).train()
    theirs.save_pretrained(tmp_path / "start")
    ours = PeftModel.from_pretrained(llama(), tmp_path / "start", is_trainable=True).train()

    expected, their_patterns = train(theirs, lambda: theirs.peft_config["default"])
    losses, patterns = train(ours, lambda: ours.peft_config["default"])
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    assert patterns == their_patterns
    assert sum(map(sum, patterns[-1].values())) == 8  # two ranks on each of four layers

    ours.save_pretrained(tmp_path / "ours")
    with quiet():
        theirs.save_pretrained(tmp_path / "theirs")
    state = get_peft_model_state_dict(ours)
    assert {len(t) for k, t in state.items() if k.endswith("lora_E")} == {sum(p) for p in patterns[-1].values()}
    with quiet():
        torch.testing.assert_close(state, state_of(theirs), atol=1e-5, rtol=1e-4)
    assert_same_tensors(get_peft_model_state_dict(PeftModel.from_pretrained(llama(), tmp_path / "ours")), state)
    assert_reads(tmp_path / "ours", ours)
    assert_reads(tmp_path / "theirs", theirs)


def assert_reads(folder, trained):
    """Both libraries give the trained model's outputs from the files."""
    ids = torch.arange(8).reshape(1, 8)
    expected = trained.eval()(input_ids=ids).logits
    with quiet():
        theirs = peft.PeftModel.from_pretrained(llama(), folder).eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    ours = PeftModel.from_pretrained(llama(), folder).eval()
    torch.testing.assert_close(ours(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]


def test_the_loss_that_is_added_is_that_of_peft():
    kwargs = {**COMMON, "task_type": "CAUSAL_LM", "orth_reg_weight": 0.3}
    ids = torch.arange(8).reshape(1, 8)
    ours = get_peft_model(llama(), AdaLoraConfig(**kwargs)).train()
    with quiet():
        theirs = peft.get_peft_model(llama(), peft.AdaLoraConfig(**kwargs)).train()
        peft.set_peft_model_state_dict(theirs, get_peft_model_state_dict(ours))
    torch.testing.assert_close(ours(input_ids=ids, labels=ids).loss, theirs(input_ids=ids, labels=ids).loss)
    plain = ours.eval()(input_ids=ids, labels=ids).loss
    assert ours.train()(input_ids=ids, labels=ids).loss > plain
