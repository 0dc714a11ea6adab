"""What travels beside an adapter's own tensors: heads, embeddings, tied weights, tokens, folders."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adapterkit
from adapterkit import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from adapterkit.errors import CheckpointError
from tests.interchange.matrix import their_config
from tests.parity.bases import IDS, SIZES, bert, conv, llama, seeded
from tests.parity.helpers import add_noise, assert_same_tensors, peft, quiet, run


def tied():
    return llama(tie_word_embeddings=True)


FIELDS = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
CASES = {
    "head_saved_whole": (llama, {"modules_to_save": ["lm_head"]}),
    "norm_saved_whole": (llama, {"modules_to_save": ["model.norm"]}),
    "embedding_saved_whole": (llama, {"modules_to_save": ["embed_tokens"]}),
    "trained_tokens": (llama, {"trainable_token_indices": [3, 5]}),
    "trained_tokens_tied": (tied, {"trainable_token_indices": [3, 5]}),
    "trained_tokens_by_layer": (llama, {"trainable_token_indices": {"embed_tokens": [4]}}),
    "tied_embeddings": (tied, {}),
    "embedding_target": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "head_target": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "dora": (llama, {"use_dora": True}),
    "dora_embedding": (llama, {"use_dora": True, "target_modules": ["embed_tokens"]}),
    "lora_bias": (lambda: bert("LMHeadModel"), {"target_modules": ["query"], "lora_bias": True}),
    "all_biases": (lambda: bert("LMHeadModel"), {"target_modules": ["query"], "bias": "all"}),
    "own_biases": (lambda: bert("LMHeadModel"), {"target_modules": ["query"], "bias": "lora_only"}),
    "patterns": (llama, {"rank_pattern": {"layers.0.self_attn.q_proj": 4}, "alpha_pattern": {"q_proj": 3}}),
    "rslora": (llama, {"use_rslora": True}),
    "pissa": (llama, {"init_lora_weights": "pissa"}),
    "olora": (llama, {"init_lora_weights": "olora"}),
    "mica": (llama, {"init_lora_weights": "mica"}),
    "mica_embedding": (llama, {"init_lora_weights": "mica", "target_modules": ["embed_tokens", "q_proj"]}),
    "blocks": (llama, {"use_bdlora": {"target_modules_bd_b": ["q_proj"], "nblocks": 2}}),
    "convolution": (conv, {"target_modules": ["conv", "emb"], "task_type": None}),
}


def config(fields):
    return LoraConfig(**{**FIELDS, **fields})


def inputs(make):
    return IDS if make is conv else {"input_ids": IDS}


@pytest.mark.parametrize("name", CASES)
def test_ours_in_peft(tmp_path, name):
    make, fields = CASES[name]
    model = get_peft_model(make(), config(fields))
    add_noise(model)
    model.eval().save_pretrained(tmp_path)
    with quiet():
        theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
        their_state = peft.get_peft_model_state_dict(theirs)
    assert_same_tensors(get_peft_model_state_dict(model), _without_copies(their_state))
    torch.testing.assert_close(run(theirs, inputs(make)), run(model, inputs(make)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_pefts_in_ours(tmp_path, name):
    make, fields = CASES[name]
    with quiet():
        theirs = peft.get_peft_model(make(), their_config(config(fields)))
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make(), tmp_path)
    with quiet():
        their_state = peft.get_peft_model_state_dict(theirs)
    assert_same_tensors(get_peft_model_state_dict(model), _without_copies(their_state))
    torch.testing.assert_close(run(model, inputs(make)), run(theirs, inputs(make)), atol=1e-5, rtol=1e-4)


def test_of_several_patterns_the_first_one_counts_in_files_too(tmp_path):
    patterns = {"rank_pattern": {"q_proj": 4, "layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"q_proj": 5, ".*": 9}}
    model = get_peft_model(llama(), config(patterns))
    add_noise(model)
    model.eval().save_pretrained(tmp_path)
    expected = run(model, {"input_ids": IDS})
    with quiet():
        theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    for other in (theirs, PeftModel.from_pretrained(llama(), tmp_path)):
        torch.testing.assert_close(run(other, {"input_ids": IDS}), expected, atol=1e-5, rtol=1e-4)


def test_modules_inside_a_model_of_that_name_beside_a_prompt(tmp_path):
    fields = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM", "modules_to_save": ["mlp", "lm_head"]}
    with quiet():
        theirs = peft.get_peft_model(llama(), peft.PromptTuningConfig(**fields))
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path / "theirs")
    model = PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    torch.testing.assert_close(run(model, {"input_ids": IDS}), run(theirs, {"input_ids": IDS}), atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(llama(), tmp_path / "ours")
    assert_same_tensors(get_peft_model_state_dict(again), get_peft_model_state_dict(model))
    with quiet():
        back = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    torch.testing.assert_close(run(back, {"input_ids": IDS}), run(theirs, {"input_ids": IDS}))


def _without_copies(state):
    """PEFT writes the biases of modules that are saved whole a second time, under its wrapper's own names."""
    state = {k: t for k, t in state.items() if ".modules_to_save." not in k and ".original_module." not in k}
    shared = "base_model.model.cls.predictions.bias"  # the decoder's, under the name of what holds it
    return {k: t for k, t in state.items() if k != shared}


def roberta():
    sizes = {**SIZES, "max_position_embeddings": 16, "pad_token_id": 0}
    return seeded(
        lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**sizes, num_labels=2))
    )


def distilbert():
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 32}
    return seeded(lambda: transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**sizes)))


def test_a_head_of_two_layers_is_trained_and_travels(tmp_path):
    stated = {"r": 2, "target_modules": ["q_lin"], "task_type": "SEQ_CLS"}
    model = get_peft_model(distilbert(), LoraConfig(**stated))
    with quiet():
        theirs = peft.get_peft_model(distilbert(), peft.LoraConfig(**stated))
    assert model.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    add_noise(model)
    model.eval().save_pretrained(tmp_path / "ours")
    with quiet():
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path / "theirs")
        read = peft.PeftModel.from_pretrained(distilbert(), tmp_path / "ours").eval()
    torch.testing.assert_close(run(read, {"input_ids": IDS}), run(model, {"input_ids": IDS}), atol=1e-5, rtol=1e-4)
    read = PeftModel.from_pretrained(distilbert(), tmp_path / "theirs")
    torch.testing.assert_close(run(read, {"input_ids": IDS}), run(theirs, {"input_ids": IDS}), atol=1e-5, rtol=1e-4)


HEADS = {
    "classifier": (roberta, {"task_type": "SEQ_CLS"}),
    "predictions": (lambda: bert("ForMaskedLM"), {"task_type": None, "modules_to_save": ["predictions"]}),
}


@pytest.mark.parametrize("name", ["default", "other"])
@pytest.mark.parametrize("head", HEADS)
def test_biases_in_a_head_of_several_layers(tmp_path, head, name):
    make, fields = HEADS[head]
    stated = {"r": 2, "target_modules": ["query"], "bias": "all", **fields}
    with quiet():
        theirs = peft.get_peft_model(make(), peft.LoraConfig(**stated), adapter_name=name)
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    state = load_file(folder / "adapter_model.safetensors")
    assert [key for key in state if f".modules_to_save.{name}." in key]
    read = PeftModel.from_pretrained(make(), folder)
    torch.testing.assert_close(run(read, {"input_ids": IDS}), run(theirs, {"input_ids": IDS}), atol=1e-5, rtol=1e-4)
    copies = {key: t + 1 for key, t in state.items() if ".modules_to_save." in key}
    adapterkit.set_peft_model_state_dict(read, {**state, **copies})  # the keys themselves count
    torch.testing.assert_close(run(read, {"input_ids": IDS}), run(theirs, {"input_ids": IDS}), atol=1e-5, rtol=1e-4)


def test_modules_that_peft_saves_by_the_end_of_their_names(tmp_path):
    with quiet():
        theirs = peft.get_peft_model(llama(), peft.LoraConfig(**FIELDS, modules_to_save=["norm"]))
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path)
    names = ["input_layernorm", "norm", "post_attention_layernorm"]
    message = r"unexpected: model\.layers\.0\.input_layernorm(.|\n)*\['norm'\] means .* write modules_to_save="
    with pytest.raises(CheckpointError, match=message + re.escape(str(names))):
        PeftModel.from_pretrained(llama(), tmp_path)
    stated = PeftConfig.from_pretrained(tmp_path).model_copy(update={"modules_to_save": names})
    read = PeftModel.from_pretrained(llama(), tmp_path, config=stated)
    torch.testing.assert_close(read(input_ids=IDS).logits, theirs(input_ids=IDS).logits, atol=1e-5, rtol=1e-4)


def grown(path, size=40):
    """A model from a directory whose vocabulary has grown since."""
    base = transformers.LlamaForCausalLM.from_pretrained(path)
    base.resize_token_embeddings(size)
    return base.eval()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("writer", [adapterkit, peft])
def test_resized_embeddings_travel_with_the_adapter(tmp_path, writer, tie):
    llama(tie_word_embeddings=tie).save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    with quiet():
        base = grown(tmp_path / "base")
        written = writer.get_peft_model(base, writer.LoraConfig(**FIELDS)).eval()
        add_noise(written)
        written.save_pretrained(tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert state["base_model.model.model.embed_tokens.weight"].shape == (40, 16)
    assert state["base_model.model.lm_head.weight"].shape == (40, 16)
    for reader in (adapterkit, peft):
        torch.manual_seed(2)  # other values for the new rows
        with quiet():
            read = reader.PeftModel.from_pretrained(grown(tmp_path / "base"), tmp_path / "adapter").eval()
        torch.testing.assert_close(read(input_ids=IDS).logits, written(input_ids=IDS).logits)
    with pytest.raises(CheckpointError, match="call resize_token_embeddings first"):
        PeftModel.from_pretrained(
            transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        )


def renewed(path, seed=2):
    """`grown`, with other values in the new rows."""
    torch.manual_seed(seed)
    with quiet():
        return grown(path)


@pytest.mark.parametrize("indices", [[32, 33], {"embed_tokens": [32], "lm_head": [33, 5]}], ids=str)
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("writer", [adapterkit, peft])
def test_resized_embeddings_travel_beside_trained_tokens(tmp_path, writer, tie, indices):
    llama(tie_word_embeddings=tie).save_pretrained(tmp_path / "base")
    with quiet():
        fields = {**FIELDS, "trainable_token_indices": indices}
        written = writer.get_peft_model(renewed(tmp_path / "base", 1), writer.LoraConfig(**fields)).eval()
        add_noise(written)
        written.save_pretrained(tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.embed_tokens.token_adapter.base_layer.weight" in state
    for reader in (adapterkit, peft):
        with quiet():
            read = reader.PeftModel.from_pretrained(renewed(tmp_path / "base"), tmp_path / "adapter").eval()
        torch.testing.assert_close(read(input_ids=IDS).logits, written(input_ids=IDS).logits, atol=1e-5, rtol=1e-4)


BESIDE = [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"trainable_token_indices": [3, 33]},
    {"target_modules": ["q_proj", "lm_head"], "bias": "all"},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
]


@pytest.mark.filterwarnings("ignore:bias='all' trains nothing")
@pytest.mark.parametrize("fields", BESIDE, ids=str)
def test_embeddings_travel_as_their_own_adapter_has_them(tmp_path, fields):
    llama().save_pretrained(tmp_path / "base")
    written = get_peft_model(renewed(tmp_path / "base", 1), config({}), "a")
    written.add_adapter("b", config(fields))
    written.set_adapter(["a", "b"])
    add_noise(written)
    written.eval().save_pretrained(tmp_path)
    assert "base_model.model.model.embed_tokens.weight" in load_file(tmp_path / "a" / "adapter_model.safetensors")
    for name in ("a", "b"):
        written.set_adapter(name)
        for reader in (adapterkit, peft):
            with quiet():
                read = reader.PeftModel.from_pretrained(renewed(tmp_path / "base"), tmp_path / name).eval()
            found, expected = read(input_ids=IDS).logits, written(input_ids=IDS).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [BESIDE[0], BESIDE[3]], ids=str)
def test_pefts_embeddings_beside_another_adapter(tmp_path, fields):
    with quiet():
        written = peft.get_peft_model(llama(), peft.LoraConfig(**FIELDS), adapter_name="a")
        written.add_adapter("b", peft.LoraConfig(**{**FIELDS, **fields}))
        add_noise(written)
        written.eval().save_pretrained(tmp_path, save_embedding_layers=True)
    other = llama()
    with torch.no_grad():
        other.model.embed_tokens.weight += 0.5
    read = PeftModel.from_pretrained(other, tmp_path / "a")
    torch.testing.assert_close(read(input_ids=IDS).logits, written(input_ids=IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reader", [adapterkit, peft])
def test_the_embeddings_saved_while_merged_are_the_frozen_ones(tmp_path, reader):
    model = get_peft_model(llama(), config({"target_modules": ["q_proj", "embed_tokens", "lm_head"]})).eval()
    add_noise(model)
    expected = model(input_ids=IDS).logits
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    with quiet():
        read = reader.PeftModel.from_pretrained(llama(), tmp_path).eval()
    torch.testing.assert_close(read(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-4)
    model.load_adapter(tmp_path, "again")  # the same embeddings: nothing to do
    edited = load_file(tmp_path / "adapter_model.safetensors")
    edited["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(edited, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: the file has another .* \['default'\] are merged"):
        model.load_adapter(tmp_path, "other")
    model.unmerge_adapter()
    torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_embeddings_of_an_injected_model_and_of_a_prompt_have_their_prefix():
    model = adapterkit.inject_adapter_in_model(config({}), llama())
    assert "model.embed_tokens.weight" in get_peft_model_state_dict(model, save_embedding_layers=True)
    prompts = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}
    mine = get_peft_model(llama(), adapterkit.PromptTuningConfig(**prompts))
    state = get_peft_model_state_dict(mine, save_embedding_layers=True)
    with quiet():
        theirs = peft.get_peft_model(llama(), peft.PromptTuningConfig(**prompts))
        their_state = peft.get_peft_model_state_dict(theirs, save_embedding_layers=True)
    assert state.keys() == their_state.keys()
    adapterkit.set_peft_model_state_dict(mine, their_state)


def test_embeddings_stay_where_nothing_was_resized(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(**FIELDS)).save_pretrained(tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in key for key in state)


@pytest.mark.parametrize(("writer", "reader"), [(adapterkit, peft), (peft, adapterkit)])
def test_several_adapters_are_folders(tmp_path, writer, reader):
    with quiet():
        written = writer.get_peft_model(llama(), writer.LoraConfig(**FIELDS))
        written.add_adapter("other", writer.LoraConfig(**{**FIELDS, "r": 4, "target_modules": ["v_proj"]}))
        written.set_requires_grad("other", True)
        add_noise(written)
        written.eval().save_pretrained(tmp_path)
        read = reader.PeftModel.from_pretrained(llama(), tmp_path)
        read.load_adapter(tmp_path / "other", "other")
        found = [reader.PeftModel.from_pretrained(llama(), tmp_path, subfolder="other")(input_ids=IDS).logits]
    for name in ("default", "other"):
        written.set_adapter(name)
        read.set_adapter(name)
        torch.testing.assert_close(read.eval()(input_ids=IDS).logits, written.eval()(input_ids=IDS).logits)
    torch.testing.assert_close(found[0], written(input_ids=IDS).logits)


def test_the_config_says_what_really_matched(tmp_path):
    given = LoraConfig(**{**FIELDS, "target_modules": r".*self_attn\.(q|v)_proj"})
    get_peft_model(llama(), given).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_the_file_is_the_same_on_every_run(tmp_path):
    for folder in ("a", "b"):
        model = get_peft_model(llama(), LoraConfig(**{**FIELDS, "target_modules": {"v_proj", "q_proj", "o_proj"}}))
        model.save_pretrained(tmp_path / folder)
    texts = [(tmp_path / folder / "adapter_config.json").read_bytes() for folder in ("a", "b")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "r": 4}], ids=str)
def test_transformers_own_loader_reads_it(tmp_path, fields):
    model = get_peft_model(llama(), config(fields))
    add_noise(model)
    model.eval().save_pretrained(tmp_path)
    plain = llama()
    with quiet():
        plain.load_adapter(str(tmp_path))
    torch.testing.assert_close(plain.eval()(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_pickled_file_goes_both_ways(tmp_path):
    model = get_peft_model(llama(), config({}))
    add_noise(model)
    model.eval().save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    with quiet():
        theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    again = PeftModel.from_pretrained(llama(), tmp_path)
    for read in (theirs, again):
        torch.testing.assert_close(read(input_ids=IDS).logits, model(input_ids=IDS).logits)
