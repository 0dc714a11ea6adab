"""Adapters in files: PEFT's keys, every way a file can be wrong, and nothing half-done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterkit import (
    IA3Config,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from adapterkit.errors import CheckpointError, StateError
from tests.models import batch, lora, moved, net
from tests.parity.bases import llama

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def edit(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a saved adapter."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


FIRST = "base_model.model.layers.0.query.lora_A.weight"


def swap(tensors: dict[str, Tensor]) -> None:
    other = FIRST.replace("lora_A", "lora_B")
    tensors[FIRST], tensors[other] = tensors[other], tensors[FIRST]


def test_keys_are_peft_s():
    model = moved(target_modules=["query", "embed"], bias="lora_only", modules_to_save=["classifier"])
    expected = [f"layers.{i}.query.{t}" for i in (0, 1) for t in ("lora_A.weight", "lora_B.weight", "base_layer.bias")]
    expected += ["embed.lora_embedding_A", "embed.lora_embedding_B", "classifier.weight", "classifier.bias"]
    expected += ["embed.base_layer.weight"]  # a targeted embedding travels with its adapter
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert {f"base_model.model.{key}" for key in expected} - state.keys() <= {
        "base_model.model.embed.base_layer.weight"
    }
    assert state.keys() <= {f"base_model.model.{key}" for key in expected}


def test_tensors_are_the_model_s_own_memory():
    model = moved()
    own = {p.data_ptr() for p in model.parameters()}
    state = get_peft_model_state_dict(model)
    assert all(t.data_ptr() in own and not t.requires_grad for t in state.values())


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_keys_are_read_with_and_without_the_prefix(saved, prefix):
    directory, model = saved
    plain = {key.removeprefix("base_model.model."): t for key, t in load_file(directory / WEIGHTS).items()}
    save_file({prefix + key: tensor for key, tensor in plain.items()}, directory / WEIGHTS)
    assert torch.equal(PeftModel.from_pretrained(net(), directory)(batch()), model(batch()))


def test_injected_and_wrapped_models_read_each_other():
    wrapped, injected = moved(), inject_adapter_in_model(lora(), net()).eval()
    set_peft_model_state_dict(injected, get_peft_model_state_dict(wrapped))
    assert torch.equal(injected(batch()), wrapped(batch()))
    state = get_peft_model_state_dict(injected)
    assert all(key.startswith("layers.") for key in state)
    fresh = get_peft_model(net(), lora()).eval()
    set_peft_model_state_dict(fresh, state)
    assert torch.equal(fresh(batch()), wrapped(batch()))


def test_trained_tokens_in_a_state_make_no_target():
    config = lora(trainable_token_indices={"embed": [1, 2]}, bias="lora_only", modules_to_save=["classifier"])
    state = get_peft_model_state_dict(inject_adapter_in_model(config, net()))
    again = inject_adapter_in_model(config, net(), state_dict=state)
    assert get_peft_model_state_dict(again).keys() == state.keys()


def test_what_peft_s_wrapper_repeats_is_left_out():
    model = moved(modules_to_save=["classifier"])
    state = get_peft_model_state_dict(model)
    extra = {"base_model.model.classifier.original_module.weight": torch.zeros(3, 8)}
    result = set_peft_model_state_dict(model, {**state, **extra})
    assert result == ([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST), r"missing: layers\.0\.query\.lora_A\.weight"),
        (
            lambda t: t.update({FIRST.replace("query", "qeury"): t.pop(FIRST)}),
            r"missing: layers\.0\.query\.lora_A\.weight \(the file has layers\.0\.qeury\.lora_A\.weight\)\n"
            r"  unexpected: layers\.0\.qeury\.lora_A\.weight \(the model has layers\.0\.query\.lora_A\.weight\)",
        ),
        (
            lambda t: t.update({"base_model.model.layers.7.query.lora_A.weight": torch.zeros(2, 8)}),
            r"unexpected: layers\.7",
        ),
        (swap, r"shape: layers\.0\.query\.lora_A\.weight is \(8, 2\), expected \(2, 8\)"),
        (lambda t: t.update({FIRST: t[FIRST].int()}), r"type: layers\.0\.query\.lora_A\.weight is torch\.int32"),
        (lambda t: t.clear(), r"missing: (.|\n)*missing: "),
    ],
    ids=["missing", "misspelt", "surplus", "swapped", "integers", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, message):
    directory, _ = saved
    edit(directory, change)
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(net(), directory)
    model = get_peft_model(net(), lora(), "first")
    before, state = model.state_dict().keys(), get_peft_model_state_dict(model, adapter_name="first")
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(directory, "second")
    assert model.state_dict().keys() == before
    assert list(model.peft_config) == ["first"]
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(directory, "first")
    after = get_peft_model_state_dict(model, adapter_name="first")
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items())


def test_what_does_not_fit_can_be_reported_instead(saved):
    directory, model = saved
    edit(directory, lambda t: t.update({"base_model.model.layers.7.query.lora_A.weight": t.pop(FIRST)}))
    fresh = get_peft_model(net(), lora())
    before = get_peft_model_state_dict(fresh)[FIRST].clone()
    result = fresh.load_adapter(directory, "default", strict=False)
    assert result.missing_keys == ["layers.0.query.lora_A.weight"]
    assert result.unexpected_keys == ["layers.7.query.lora_A.weight"]
    after, state = get_peft_model_state_dict(fresh), get_peft_model_state_dict(model)
    assert torch.equal(after[FIRST], before)
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items() if key != FIRST)


def test_a_long_list_of_problems_is_cut():
    model = get_peft_model(
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(20))), LoraConfig(r=1, target_modules="all-linear")
    )
    with pytest.raises(CheckpointError, match="and 20 more") as error:
        set_peft_model_state_dict(model, {})
    assert len(str(error.value).splitlines()) == 22


def test_shapes_that_differ_can_be_left(saved):
    directory, _ = saved
    edit(directory, swap)
    fresh = get_peft_model(net(), lora())
    result = set_peft_model_state_dict(fresh, load_file(directory / WEIGHTS), ignore_mismatched_sizes=True)
    assert [key.rpartition("query.")[2] for key in result.missing_keys] == ["lora_A.weight", "lora_B.weight"]


def test_a_merged_adapter_is_not_given_other_tensors(tmp_path):
    moved().save_pretrained(tmp_path)
    model = moved()
    model.base_model.merge()
    before, state = model(batch()), get_peft_model_state_dict(model)
    for load in (
        lambda: model.load_adapter(tmp_path, "default"),
        lambda: set_peft_model_state_dict(model, {key: tensor + 1 for key, tensor in state.items()}),
    ):
        copies = {key: tensor.clone() for key, tensor in state.items()}
        with pytest.raises(StateError, match="'default' is merged: unmerge it before"):
            load()
        assert torch.equal(model(batch()), before)
        assert all(torch.equal(tensor, copies[key]) for key, tensor in state.items())


def test_embeddings_in_files_are_the_frozen_ones():
    model = moved(target_modules=["embed"])
    base = model.get_base_model()
    base.get_input_embeddings = lambda: base.embed
    before = get_peft_model_state_dict(model, save_embedding_layers=True)
    key, frozen = "base_model.model.embed.base_layer.weight", net().embed.weight
    assert torch.equal(before[key], frozen)
    model.merge_adapter()
    after = get_peft_model_state_dict(model, save_embedding_layers=True)
    assert torch.equal(after[key], frozen)
    merged = model(batch())
    state = {k.replace("default", "other"): tensor.clone() for k, tensor in after.items()}
    model.add_adapter("other", lora(target_modules=["embed"]))
    set_peft_model_state_dict(model, state, "other")
    assert torch.equal(model(batch()), merged)


def test_embeddings_travel_with_the_adapter_that_adapts_them_alone():
    base = llama()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["embed_tokens"]), "here")
    model.add_adapter("elsewhere", LoraConfig(r=2, target_modules=["q_proj"]))
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert torch.equal(get_peft_model_state_dict(model, adapter_name="here")[key], llama().model.embed_tokens.weight)
    assert not [key for key in get_peft_model_state_dict(model, adapter_name="elsewhere") if "embed" in key]
    state = get_peft_model_state_dict(model, adapter_name="here")
    set_peft_model_state_dict(model, {**state, key: 2 * state[key]}, "here")
    assert torch.equal(base.model.embed_tokens.base_layer.weight, 2 * llama().model.embed_tokens.weight)


OTHERS = {
    "lora_alpha=64, not 8": {"lora_alpha": 64},
    "use_rslora=True, not False": {"use_rslora": True},
    "r=4, not 2; lora_alpha=64, not 8; .*lora_dropout=0.1, not 0.0": {"r": 4, "lora_alpha": 64, "lora_dropout": 0.1},
    "init_lora_weights='pissa', not True": {"init_lora_weights": "pissa"},
    r"alpha_pattern=\{'query': 4\}, not \{\}": {"alpha_pattern": {"query": 4}},
}


@pytest.mark.parametrize("message", OTHERS)
@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_another_config_is_refused_by_an_adapter_that_is_there(tmp_path, message, strict):
    moved(**OTHERS[message]).save_pretrained(tmp_path)
    model = moved()
    before, config = model(batch()), model.peft_config["default"].model_copy()
    with pytest.raises(CheckpointError, match=rf"adapter 'default': {message}\. Delete the adapter"):
        model.load_adapter(tmp_path, "default", strict=strict)
    assert torch.equal(model(batch()), before)
    assert model.peft_config["default"] == config
    model.delete_adapter("default")
    model.load_adapter(tmp_path, "default")
    model.set_adapter("default")
    torch.testing.assert_close(model(batch()), PeftModel.from_pretrained(net(), tmp_path)(batch()))


def test_a_file_of_another_method_is_refused_by_an_adapter_that_is_there(tmp_path):
    get_peft_model(net(), IA3Config(target_modules=["query"], feedforward_modules=[])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'default': peft_type='IA3', not 'LORA'\. Delete"):
        moved().load_adapter(tmp_path, "default")


def test_what_says_nothing_of_the_numbers_may_differ(tmp_path):
    model = moved(init_lora_weights="gaussian", base_model_name_or_path="here", revision="main")
    model.save_pretrained(tmp_path)
    other = moved(target_modules=["query", "layers.0.value", "layers.1.value"], init_lora_weights="eva")
    other.load_adapter(tmp_path, "default")
    assert torch.equal(other(batch()), model(batch()))
