"""``ensure_weight_tying``: PEFT's tensors, numbers and files where an output layer shares the embedding's weight."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import adapterkit
from adapterkit import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from adapterkit.errors import CapabilityError, CheckpointError, ConfigError, TargetError
from tests.parity.bases import IDS, bert, llama, seeded
from tests.parity.helpers import add_noise, assert_same_tensors, gradients, peft, peft_model, quiet, run, state_of

INPUTS = {"input_ids": IDS}
WHOLE = [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]]
TARGETS = [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ["q_proj", "embed_tokens", "lm_head"]]
CASES = [{"modules_to_save": names} for names in WHOLE] + [{"target_modules": names} for names in TARGETS]


def tied():
    return llama(tie_word_embeddings=True)


def gpt2():
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    return seeded(lambda: transformers.GPT2LMHeadModel(config))


def fields(**changes):
    return {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "ensure_weight_tying": True, **changes}


def their_gradients(theirs, state):
    """PEFT's gradients by key, those of one storage added up: its output layer has parameters of its own over it."""
    found = gradients(theirs, state, INPUTS)
    embedding, head = theirs.get_base_model().model.embed_tokens, theirs.get_base_model().lm_head
    if hasattr(embedding, "lora_embedding_A"):
        stem = "base_model.model.model.embed_tokens.lora_embedding_"
        a, b = head.lora_A["default"].weight.grad, head.lora_B["default"].weight.grad
        found[f"{stem}A"] = embedding.lora_embedding_A["default"].grad + b.T
        found[f"{stem}B"] = embedding.lora_embedding_B["default"].grad + a.T
    return {key: grad for key, grad in found.items() if "lm_head" not in key}


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_parity(changes, tmp_path):
    theirs = peft_model(peft.LoraConfig(**fields(**changes)), tied())
    with quiet():
        theirs.save_pretrained(tmp_path / "theirs")
    mine = PeftModel.from_pretrained(tied(), tmp_path / "theirs", is_trainable=True).eval()
    with quiet():
        state, their_state = get_peft_model_state_dict(mine), state_of(theirs)
    plain = {key: t for key, t in state.items() if "base_layer" not in key}
    assert_same_tensors(plain, {key: t for key, t in their_state.items() if "base_layer" not in key})
    torch.testing.assert_close(run(mine, INPUTS), run(theirs, INPUTS))
    expected = their_gradients(theirs, their_state)
    grads = {key: grad for key, grad in gradients(mine, state, INPUTS).items() if key in expected}
    torch.testing.assert_close(grads, expected, atol=1e-5, rtol=1e-4)
    mine.save_pretrained(tmp_path / "ours")
    with quiet():
        back = peft.PeftModel.from_pretrained(tied(), tmp_path / "ours").eval()
        torch.testing.assert_close(run(back, INPUTS), run(theirs, INPUTS))
    again = PeftModel.from_pretrained(tied(), tmp_path / "ours")
    torch.testing.assert_close(run(again, INPUTS), run(theirs, INPUTS))


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_what_is_trained_stays_tied(changes):
    model = get_peft_model(tied(), LoraConfig(**fields(**changes)))
    assert not [name for name, p in model.named_parameters() if p.requires_grad and "lm_head" in name]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    expected = model.eval()(IDS).logits.detach()
    assert not torch.allclose(expected, tied()(IDS).logits, atol=1e-3)
    model.merge_adapter()
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, tied()(IDS).logits)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [CASES[0], CASES[3]], ids=str)
def test_a_second_adapter_and_a_combination(changes):
    model = get_peft_model(tied(), LoraConfig(**fields(**changes)), "one")
    model.add_adapter("two", LoraConfig(**fields(**changes)))
    model.set_adapter("one")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    expected = model.eval()(IDS).logits
    model.add_weighted_adapter(["one"], [1.0], "same")
    model.set_adapter("same")
    torch.testing.assert_close(model(IDS).logits, expected)
    model.delete_adapter("one")
    model.set_adapter("two")
    torch.testing.assert_close(model(IDS).logits, tied()(IDS).logits)


def test_a_second_adapter_of_peft_s_is_not_tied(tmp_path):
    theirs = peft_model(peft.LoraConfig(**fields(modules_to_save=["embed_tokens"])), tied())
    with quiet():
        theirs.add_adapter("other", peft.LoraConfig(**fields(modules_to_save=["embed_tokens"])))
        theirs.set_adapter("other")
        add_noise(theirs)
        theirs.save_pretrained(tmp_path)
    assert not [key for key in load_file(tmp_path / "other" / "adapter_model.safetensors") if "lm_head" in key]
    with pytest.warns(UserWarning, match="nothing of 'lm_head': it keeps the base's weight"):
        alone = PeftModel.from_pretrained(tied(), tmp_path / "other", "other")
    torch.testing.assert_close(run(alone, INPUTS), run(theirs, INPUTS), atol=1e-5, rtol=1e-4)
    mine = PeftModel.from_pretrained(tied(), tmp_path)
    with pytest.warns(UserWarning, match="nothing of 'lm_head'"):
        mine.load_adapter(tmp_path / "other", "other")
    for name in ("other", "default"):
        mine.set_adapter(name, inference_mode=True)
        theirs.set_adapter(name)
        torch.testing.assert_close(run(mine, INPUTS), run(theirs, INPUTS), atol=1e-5, rtol=1e-4)
    state = get_peft_model_state_dict(mine)
    without = {key: tensor for key, tensor in state.items() if "embed_tokens" not in key}
    with pytest.raises(CheckpointError, match=r"missing: model\.embed_tokens\.weight"):
        adapterkit.set_peft_model_state_dict(mine, without)


def test_an_embedding_of_another_name(tmp_path):
    """PEFT ties what is called embed_tokens or lm_head, and leaves GPT-2's wte untied, whatever it is asked."""
    mine = get_peft_model(gpt2(), LoraConfig(**fields(target_modules=["wte"])))
    add_noise(mine)
    expected = run(mine.eval(), INPUTS)
    mine.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(gpt2(), tmp_path / "ours")
    torch.testing.assert_close(run(again, INPUTS), expected)
    with quiet():
        back = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "ours").eval()
        theirs = peft_model(peft.LoraConfig(**fields(target_modules=["wte"])), gpt2())
        theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(run(back, INPUTS), expected)
    with pytest.warns(UserWarning, match="nothing of 'lm_head': it keeps the base's weight"):
        mine = PeftModel.from_pretrained(gpt2(), tmp_path / "theirs")
    torch.testing.assert_close(run(mine, INPUTS), run(theirs, INPUTS))


def test_an_embedding_of_another_name_is_not_tied_by_peft(tmp_path):
    changes = {"target_modules": ["query", "word_embeddings"], "task_type": None}
    theirs = peft_model(peft.LoraConfig(**fields(**changes)), bert("ForMaskedLM"))
    with quiet():
        theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="nothing of 'cls.predictions.decoder': it keeps the base's weight"):
        mine = PeftModel.from_pretrained(bert("ForMaskedLM"), tmp_path)
    torch.testing.assert_close(run(mine, INPUTS), run(theirs, INPUTS), atol=1e-5, rtol=1e-4)
    state = get_peft_model_state_dict(mine)
    lost = {key: tensor for key, tensor in state.items() if "word_embeddings" not in key}
    with pytest.raises(CheckpointError, match=r"missing: bert\.embeddings\.word_embeddings\.lora_embedding_A"):
        adapterkit.set_peft_model_state_dict(mine, lost)


def test_the_file_names_the_embedding_only(tmp_path):
    for changes in (CASES[0], CASES[3]):
        get_peft_model(tied(), LoraConfig(**fields(**changes))).save_pretrained(tmp_path)
        content = json.loads((tmp_path / "adapter_config.json").read_text())
        names = [*content["target_modules"], *(content["modules_to_save"] or [])]
        assert content["ensure_weight_tying"] is True
        assert sorted(name.rpartition(".")[2] for name in names) == ["embed_tokens", "q_proj"]


def test_layers_that_are_not_tied_may_train_other_tokens():
    chosen = {"wte": [1, 2], "wpe": [3]}
    model = get_peft_model(gpt2(), LoraConfig(**fields(target_modules=["c_attn"], trainable_token_indices=chosen)))
    rows = {key.split(".")[3]: len(t) for key, t in get_peft_model_state_dict(model).items() if "tokens" in key}
    assert rows == {"wte": 2, "wpe": 1}


def test_other_modules_may_be_saved_whole_beside_tied_targets():
    model = get_peft_model(tied(), LoraConfig(**fields(target_modules=["lm_head"], modules_to_save=["norm"])))
    assert sorted(model.base_model.layers) == ["lm_head", "model.embed_tokens"]
    assert sorted(model.base_model.copies) == ["model.norm"]


@pytest.mark.parametrize(
    ("make", "changes", "error", "message"),
    [
        (
            llama,
            {"modules_to_save": ["lm_head"]},
            TargetError,
            "ensure_weight_tying: no layer of this LlamaForCausalLM",
        ),
        (tied, {"target_modules": ["embed_tokens"], "use_dora": True}, CapabilityError, "use_dora cannot follow"),
        (
            tied,
            {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
            CapabilityError,
            "some are targets, and others saved whole",
        ),
        (
            tied,
            {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 3]}},
            ConfigError,
            "tied layers train the same tokens",
        ),
    ],
)
def test_refusals(make, changes, error, message):
    with pytest.raises(error, match=message):
        get_peft_model(make(), LoraConfig(**fields(**changes)))
