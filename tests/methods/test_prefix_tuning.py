"""Prefix tuning: PEFT's numbers, files and counts on every task and kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from adapterkit import PeftModel, PrefixTuningConfig, get_peft_model
from adapterkit.errors import ConfigError
from tests.parity.helpers import peft, quiet
from tests.parity.prompts import (
    CASES,
    assert_files_go_back,
    bart,
    batch,
    gemma2,
    gemma4,
    gpt2,
    llama,
    mistral,
    needs_past_key_values,
    pair,
    results,
    t5,
)


@needs_past_key_values
@pytest.mark.parametrize("case", [*CASES, "CAUSAL_LM-gemma4"])
def test_forward_and_files_are_those_of_peft(case: str, tmp_path: Path) -> None:
    task_type, make, extra = CASES.get(case, ("CAUSAL_LM", gemma4, {"labels": batch()["input_ids"]}))
    config = {"task_type": task_type, "num_virtual_tokens": 3}
    ours, theirs = pair(config, PrefixTuningConfig, peft.PrefixTuningConfig, make, tmp_path)
    inputs = {**batch(), **extra}
    with quiet():
        expected = results(theirs, inputs)
    actual = results(ours, inputs)
    assert expected.keys() == actual.keys()
    torch.testing.assert_close(actual, expected)
    assert_files_go_back(ours, make, inputs, tmp_path)


def _bert_base(auto: str) -> torch.nn.Module:
    return getattr(hf, auto).from_config(hf.BertConfig(vocab_size=28996))


@pytest.mark.parametrize(
    ("task_type", "make", "counts"),
    [
        ("SEQ_CLS", lambda: _bert_base("AutoModelForSequenceClassification"), (370_178, 108_681_988)),
        ("TOKEN_CLS", lambda: _bert_base("AutoModelForTokenClassification"), (370_178, 108_091_396)),
        (
            "CAUSAL_LM",
            lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=1280, n_layer=36, n_head=20)),
            (1_843_200, 775_873_280),
        ),
    ],
)
def test_documented_counts(task_type: str, make: object, counts: tuple[int, int]) -> None:
    with torch.device("meta"):
        base = make()
    model = get_peft_model(base, PrefixTuningConfig(task_type=task_type, num_virtual_tokens=20))
    assert model.get_nb_trainable_parameters() == counts


def test_a_projection_is_dropped_when_saving_and_its_table_can_be_trained_on(tmp_path: Path) -> None:
    config = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 5}
    inputs = batch()
    with quiet():
        theirs = peft.get_peft_model(gpt2(), peft.PrefixTuningConfig(**config)).eval()
    ours = get_peft_model(gpt2(), PrefixTuningConfig(**config)).eval()
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    ours.prompt_encoder["default"].load_state_dict(theirs.prompt_encoder["default"].state_dict())
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits)
    ours.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(gpt2(), tmp_path / "ours", is_trainable=True)
    assert again.get_nb_trainable_parameters()[0] == 3 * 2 * 2 * 16
    torch.testing.assert_close(again.eval()(**inputs).logits, ours(**inputs).logits)
    again(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert again.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("stated", [{"num_attention_heads": 7}, {"token_dim": 7}])
def test_half_of_a_cache_s_sizes_is_refused(stated: dict[str, int]) -> None:
    [field] = stated
    with pytest.raises(ConfigError, match=f"{field}=7 would do nothing without .* have {field}="):
        get_peft_model(llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **stated))


def test_zero_start_gives_keys_and_values_of_zero() -> None:
    for projection in (False, True):
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, init_weights="zero", prefix_projection=projection
        )
        assert not get_peft_model(gpt2(), config).get_prompt_embedding_to_save("default").any()


SEARCHES = {
    "greedy": {"max_new_tokens": 5},
    "without cache": {"max_new_tokens": 5, "use_cache": False},
    "beams": {"max_new_tokens": 5, "num_beams": 3},
    "penalty": {"max_new_tokens": 5, "repetition_penalty": 1.5, "min_new_tokens": 3},
}


@needs_past_key_values
@pytest.mark.parametrize("make", [gpt2, llama, mistral, gemma2, gemma4, t5, bart])
def test_generation_is_that_of_peft(make: object, tmp_path: Path) -> None:
    task_type = "SEQ_2_SEQ_LM" if make in (t5, bart) else "CAUSAL_LM"
    config = {"task_type": task_type, "num_virtual_tokens": 3}
    ours, theirs = pair(config, PrefixTuningConfig, peft.PrefixTuningConfig, make, tmp_path)
    inputs = batch(left=task_type == "CAUSAL_LM")
    for search in SEARCHES.values():
        with quiet():
            # PEFT fails without a cache, or loses the prefix after the first step: its tokens with one are compared
            expected = theirs.generate(**inputs, **{**search, "use_cache": True}, do_sample=False)
        assert torch.equal(ours.generate(**inputs, **search, do_sample=False), expected)
    alone = ours.get_base_model().generate(**inputs, **search, do_sample=False)
    assert not torch.equal(alone, expected)
    with ours.disable_adapter():
        assert torch.equal(ours.generate(**inputs, **search, do_sample=False), alone)


@pytest.mark.parametrize("make", [gpt2, llama, mistral, gemma2])
def test_static_cache_and_going_on_from_a_cache(make: object) -> None:
    model = get_peft_model(make(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inputs = batch(left=True)
    whole = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    static = model.generate(**inputs, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(static, whole)
    half = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(3, 3)], dim=1)
    rest = model.generate(half.sequences, attention_mask=mask, past_key_values=half.past_key_values, max_new_tokens=3)
    assert torch.equal(rest, whole)
