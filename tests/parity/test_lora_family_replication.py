"""``layer_replication``: PEFT's numbers and files, shared weights, and what can be done with the deeper model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.errors import CapabilityError, ConfigError, StateError
from tests.parity.bases import IDS, SIZES, llama, seeded, t5
from tests.parity.helpers import add_noise, assert_parity, peft

RANGES = [[0, 2], [1, 3]]


def deep():
    return llama(num_hidden_layers=3)


def classifier():
    return seeded(
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(**{**SIZES, "num_hidden_layers": 3}, max_position_embeddings=32)
        )
    )


def config(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "layer_replication": RANGES, **fields})


def moved(base: nn.Module | None = None, **fields) -> PeftModel:
    model = get_peft_model(deep() if base is None else base, config(**fields))
    add_noise(model)
    return model.eval()


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (deep, {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}),
        (deep, {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "layers_to_transform": [2, 3]}),
        (
            classifier,
            {"target_modules": ["query", "output.dense"], "use_dora": True, "modules_to_save": ["classifier"]},
        ),
    ],
)
def test_parity(make, fields):
    kwargs = {"r": 2, "layer_replication": RANGES, **fields}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, make, {"input_ids": IDS}, merge=False)


def test_generation_with_and_without_a_cache():
    model = moved(task_type="CAUSAL_LM")
    cached, plain = (model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


def test_replicas_share_weights_and_have_adapters_of_their_own():
    base = deep()
    before = sum(p.numel() for p in base.parameters())
    model = moved(base)
    layers = model.get_base_model().model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3]
    assert layers[1].mlp.up_proj.weight is layers[2].mlp.up_proj.weight
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.get_nb_trainable_parameters() == (trained, before + trained)
    assert not torch.equal(*(layers[i].self_attn.q_proj.adapters["default"].lora_A.weight for i in (1, 2)))


def test_merging_is_what_peft_refuses_and_is_undone_exactly():
    model = moved()
    expected = model(IDS).logits.detach()
    weight = model.get_base_model().model.layers[1].self_attn.q_proj.base_layer.weight
    model.merge_adapter()
    torch.testing.assert_close(model(IDS).logits, expected)
    model.unmerge_adapter()
    layers = model.get_base_model().model.layers
    assert layers[1].self_attn.q_proj.base_layer.weight is layers[2].self_attn.q_proj.base_layer.weight is weight
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, expected)
    assert type(merged.model.layers) is nn.ModuleList
    assert merged.config.num_hidden_layers == len(merged.model.layers) == 4
    pointers = [p.data_ptr() for p in merged.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_unloading_gives_the_base_back():
    base = deep()
    layers = base.model.layers
    assert moved(base).unload() is base
    assert base.model.layers is layers
    assert base.config.num_hidden_layers == 3
    torch.testing.assert_close(base(IDS).logits, deep()(IDS).logits)


def test_settings_that_have_an_entry_for_each_layer_follow():
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    sizes = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2, "sliding_window": 2, "use_sliding_window": True}
    base = seeded(lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, layer_types=kinds)))
    model = moved(base, layer_replication=[[1, 3], [1, 2]], task_type="CAUSAL_LM")
    assert model.config.layer_types == [kinds[1], kinds[2], kinds[1]]
    cached, plain = (model.generate(IDS, max_new_tokens=3, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)
    model.unload()
    assert base.config.layer_types == kinds


class TestRefusals:
    def test_a_layer_that_is_not_there(self):
        base = deep()
        with pytest.raises(ConfigError, match=r"model\.layers has the layers 0 to 2, and \[\[1, 4\]\] ends after them"):
            get_peft_model(base, config(layer_replication=[[0, 2], [1, 4]]))

    @pytest.mark.parametrize("ranges", [[[2, 1]], [[0]], [], [[-1, 2]]])
    def test_what_is_no_range(self, ranges):
        with pytest.raises(ConfigError, match="layer_replication"):
            LoraConfig.from_dict({"layer_replication": ranges} if ranges else {"layer_replication": [[]]})

    def test_a_mistake_elsewhere_leaves_the_base_as_it_is(self):
        base = deep()
        with pytest.raises(ConfigError, match="q_prj"):
            get_peft_model(base, config(target_modules=["q_prj"]))
        assert len(base.model.layers) == base.config.num_hidden_layers == 3

    def test_two_lists_of_layers(self):
        with pytest.raises(CapabilityError, match="2 lists of 2 modules, not one"):
            get_peft_model(t5(), config(target_modules=["q"], layer_replication=[[0, 2]]))

    @pytest.mark.parametrize("first", [RANGES, None])
    def test_an_adapter_for_other_layers(self, first):
        model = get_peft_model(deep(), config(layer_replication=first))
        other = None if first else RANGES
        with pytest.raises(StateError, match="layer_replication"):
            model.add_adapter("two", config(layer_replication=other))
        model.add_adapter("three", config(layer_replication=first))
        assert sorted(model.peft_config) == ["default", "three"]


def test_a_plain_model_s_only_list_of_modules():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = torch.tanh(block(x))
            return x

    base = seeded(Stack)
    model = moved(base, target_modules=["1"], layer_replication=[[1, 2], [0, 1]])
    assert list(model.base_model.layers) == ["blocks.1"]
