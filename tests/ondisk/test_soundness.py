"""What is saved is sound, in every form that methods give it (`tests/interchange` asks this of every method, too), and
what is damaged is named."""

from __future__ import annotations

import pytest
import torch

from adapterkit import BdLoraConfig, LoraConfig, get_peft_model
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.ondisk.soundness import not_finite, notes, problems
from tests.models import lora, moved, net
from tests.ondisk.damage import change, rewrite
from tests.parity.bases import conv, llama

QUERY = "base_model.model.layers.0.query.lora_A.weight"
BLOCKS = BdLoraConfig(target_modules_bd_a=["query"], target_modules_bd_b=["value"], nblocks=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True, "target_modules": ["query", "embed"]},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["classifier"]},
        {"rank_pattern": {"query": 3}},
        {"target_modules": r"layers\.0\.(query|value)"},
        {"target_modules": ["embed", "classifier"]},
        {"trainable_token_indices": {"embed": [1, 2]}},
        {"use_bdlora": BLOCKS},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_every_kind_of_lora_is_sound(tmp_path, fields):
    moved(**fields).save_pretrained(tmp_path)
    assert problems(AdapterFiles(tmp_path)) == []
    assert notes(AdapterFiles(tmp_path)) == []


@pytest.mark.parametrize("dora", [False, True])
def test_a_convolution_is_sound(tmp_path, dora):
    get_peft_model(conv(), LoraConfig(r=4, target_modules=["conv"], use_dora=dora)).save_pretrained(tmp_path)
    assert problems(AdapterFiles(tmp_path)) == []


def test_embeddings_that_travel_with_the_adapter_are_sound(tmp_path):
    model = llama()
    model.resize_token_embeddings(40)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    files = AdapterFiles(tmp_path)
    assert any("embed_tokens" in key for key in files.header.tensors)
    assert problems(files) == []


DAMAGED = {
    "missing": (lambda t: t.pop(QUERY), "layers.0.query.lora_A.weight is missing"),
    "rank": (lambda t: t.update({QUERY: torch.ones(3, 8)}), "lora_A.weight is (3, 8), expected (2, in)"),
    "flat": (lambda t: t.update({QUERY: torch.ones(16)}), "lora_A.weight is (16,), expected (2, in)"),
    "empty": (lambda t: t.update({QUERY: torch.ones(2, 0)}), f"{QUERY} is empty: (2, 0)"),
    "integers": (lambda t: t.update({QUERY: torch.ones(2, 8, dtype=torch.int32)}), f"{QUERY} is of int32"),
    "stranger": (
        lambda t: t.update({"a.b": torch.ones(2)}),
        "a.b is neither a tensor of LORA nor of modules_to_save=[]",
    ),
    "beside": (
        lambda t: t.update({QUERY.replace("A.weight", "embedding_A"): torch.ones(2, 8)}),
        "lora_embedding_A is not expected beside lora_A.weight, lora_B.weight",
    ),
    "named": (
        lambda t: t.update({QUERY.replace("A.w", "A.default.w"): t.pop(QUERY)}),
        "an adapter's name is left in it",
    ),
    "elsewhere": (
        lambda t: t.update({k.replace("layers.0.query", "other"): v.clone() for k, v in t.items()}),
        "other has tensors, and target_modules=['query', 'value'] does not mean it",
    ),
    "no_target": (lambda t: [t.pop(k) for k in list(t) if "value" in k], "target_modules: no tensor is of 'value'"),
    "nothing": (lambda t: t.clear(), "has no tensors"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(saved, name):
    alter, word = DAMAGED[name]
    rewrite(saved[0], alter)
    found = problems(AdapterFiles(saved[0]))
    assert any(word in line for line in found), found


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"rnk": 3}, "LoraConfig does not know rnk=3; did you mean 'r'?"),
        ({"r": "many"}, "r: Input should be a valid integer"),
        ({"peft_type": "LORRA"}, "no method named 'lorra'; did you mean 'lora'?"),
        ({"r": 3}, "expected (3, in)"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save=['classifier']: the file has no tensor of them"),
        ({"target_modules": ["query", "valu"]}, "target_modules: no tensor is of 'valu'"),
    ],
)
def test_a_config_that_does_not_fit_is_named(saved, settings, word):
    change(saved[0], **settings)
    found = problems(AdapterFiles(saved[0]))
    assert any(word in line for line in found), found


def test_config_and_file_are_both_told(saved):
    change(saved[0], rnk=3)
    (saved[0] / "adapter_model.safetensors").write_bytes(b"")
    assert len(problems(AdapterFiles(saved[0]))) == 2


def test_values_that_are_no_numbers_are_counted(saved):
    def alter(tensors):
        tensors[QUERY][0, :3] = torch.tensor([torch.nan, torch.inf, 1.0])

    assert not_finite(AdapterFiles(saved[0]).tensors()) == []
    rewrite(saved[0], alter)
    assert not_finite(AdapterFiles(saved[0]).tensors()) == [f"{QUERY} has 2 values that are NaN or infinite"]


def test_what_is_worth_knowing_is_noted(tmp_path):
    model = get_peft_model(net(), lora(modules_to_save=["classifier"]))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: t.update({QUERY: t[QUERY].half()}))
    change(tmp_path, rank_pattern={"nothing": 3}, alpha_pattern={"query": 2})
    assert problems(AdapterFiles(tmp_path)) == []
    assert notes(AdapterFiles(tmp_path)) == [
        "tensors are of several types: float16, float32",
        "rank_pattern: 'nothing' matches no module of the file",
    ]
