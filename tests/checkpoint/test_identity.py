"""The base that an adapter was made on: recorded in its file, compared where it is loaded."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from safetensors import safe_open

from adapterkit import LoraConfig, PeftConfig, PeftModel, get_peft_model, hotswap_adapter
from adapterkit.checkpoint.identity import ARCHITECTURE, WEIGHTS, OtherBaseWarning, identity
from tests.models import lora, move, moved, net
from tests.parity.bases import IDS, SIZES, llama
from tests.parity.helpers import peft, quiet

PROMPT = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}
LORA = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2, "task_type": "CAUSAL_LM"}


def written(directory, settings, **options):
    model = get_peft_model(llama(), PeftConfig.from_dict(settings))
    move(model)
    model.eval().save_pretrained(directory, **options)
    return model


def other_weights():
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, num_key_value_heads=2))


def grown():
    model = llama()
    model.resize_token_embeddings(40)
    return model


@pytest.mark.parametrize("settings", [LORA, PROMPT], ids=lambda settings: settings["peft_type"])
@pytest.mark.parametrize(
    ("base", "message"),
    [(other_weights, "on a base with other weights"), (mistral, "of type llama, and this base is of type mistral")],
)
def test_another_base_is_warned_about(tmp_path, settings, base, message):
    written(tmp_path, settings)
    with pytest.warns(OtherBaseWarning, match=f"{tmp_path}: this adapter was trained .*{message}"):
        loaded = PeftModel.from_pretrained(base(), tmp_path)
    with pytest.warns(OtherBaseWarning, match=message):
        loaded.load_adapter(tmp_path, "second")
    if settings is LORA:
        with pytest.warns(OtherBaseWarning, match=message):
            hotswap_adapter(loaded, tmp_path, "second")


@pytest.mark.parametrize("settings", [LORA, PROMPT], ids=lambda settings: settings["peft_type"])
@pytest.mark.parametrize(
    "base", [llama, lambda: llama().to(torch.bfloat16), grown], ids=["same", "other number type", "longer embeddings"]
)
def test_the_same_base_is_not(tmp_path, settings, base):
    written(tmp_path, settings)
    PeftModel.from_pretrained(base(), tmp_path)  # a warning would be an error


def test_embeddings_and_heads_do_not_count():
    model = get_peft_model(net(), lora(target_modules=["query", "embed"], modules_to_save=["classifier"]))
    before = identity(model, "default")
    with torch.no_grad():
        model.get_base_model().embed.base_layer.weight.zero_()
        model.get_base_model().classifier.original_module.weight.zero_()
    assert identity(model, "default") == before
    with torch.no_grad():
        model.get_base_model().layers[1].query.base_layer.weight.zero_()
    assert identity(model, "default") != before


def test_merged_and_meta_weights_are_not_recorded():
    model = moved()
    assert WEIGHTS in identity(model, "default")
    model.merge_adapter()
    assert identity(model, "default") == {ARCHITECTURE: "Net"}
    with torch.device("meta"):
        assert WEIGHTS not in identity(get_peft_model(net(), lora()), "default")


def test_the_file_has_it_and_is_the_same_on_every_run(tmp_path):
    for folder in ("a", "b", "c", "d", "e", "f"):
        written(tmp_path / folder, LORA)
    files = {
        (tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("a", "b", "c", "d", "e", "f")
    }
    assert len(files) == 1
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", ARCHITECTURE, WEIGHTS}
    assert metadata["format"] == "pt"
    assert metadata[ARCHITECTURE] == "llama"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by a name that is going away
def test_peft_reads_it_without_a_word_and_we_read_pefts(tmp_path):
    model = written(tmp_path / "ours", LORA)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with quiet():
        theirs.save_pretrained(tmp_path / "theirs")
    PeftModel.from_pretrained(mistral(), tmp_path / "theirs")


def test_a_pickled_file_says_nothing(tmp_path):
    written(tmp_path, LORA, safe_serialization=False)
    PeftModel.from_pretrained(other_weights(), tmp_path)


def test_every_adapter_has_its_own(tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    assert identity(model, "default")[WEIGHTS] != identity(model, "other")[WEIGHTS]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    assert identity(loaded, "other") == identity(model, "other")
