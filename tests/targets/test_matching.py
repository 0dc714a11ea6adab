"""Which modules a config means, and that every name it states must match."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import transformers
from torch import nn

from adapterkit import LoraConfig
from adapterkit.architectures import ARCHITECTURES, ROLES, roles_of
from adapterkit.errors import CapabilityError, TargetError
from adapterkit.targets.matching import match_targets, matching, modules_of, suffixes


def block() -> nn.Module:
    return nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "body": nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(3))}),
            "side": nn.ModuleDict({"layers": nn.ModuleList([block()])}),
            "q_proj": nn.Linear(4, 4),
            "head": nn.Linear(4, 5),
        }
    )


MODULES = modules_of(model())
BODY = [f"body.layers.{i}" for i in range(3)]


def targets(model_type=None, kinds=("linear",), heads=("head",), **fields):
    return match_targets(MODULES, LoraConfig(**fields), model_type=model_type, kinds=kinds, heads=heads)


def test_modules_are_named_as_torch_names_them():
    assert list(MODULES) == [name for name, _ in model().named_modules() if name]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (["v_proj"], [f"{layer}.v_proj" for layer in (*BODY, "side.layers.0")]),
        (["1.v_proj"], ["body.layers.1.v_proj"]),
        (["layers.0.v_proj"], ["body.layers.0.v_proj", "side.layers.0.v_proj"]),
        (["body.layers.2.q_proj"], ["body.layers.2.q_proj"]),
        (["q_proj", "0.q_proj"], [*(f"{x}.q_proj" for x in (*BODY, "side.layers.0")), "q_proj"]),
        (["v_proj", "v_proj"], [f"{layer}.v_proj" for layer in (*BODY, "side.layers.0")]),
        ("q_proj", ["q_proj"]),
        (r".*\.0\.[qv]_proj", [f"{x}.0.{y}_proj" for x in ("body.layers", "side.layers") for y in "qv"]),
        (r"(body|side).*q_proj", [f"{layer}.q_proj" for layer in (*BODY, "side.layers.0")]),
    ],
)
def test_suffixes_and_regular_expressions(stated, expected):
    assert targets(target_modules=stated) == expected


def test_a_suffix_is_a_whole_part_of_a_name():
    with pytest.raises(TargetError, match="'proj' matches no module"):
        targets(target_modules=["proj"])
    with pytest.raises(TargetError, match=r"'ayers\.0\.v_proj' matches no module"):
        targets(target_modules=["ayers.0.v_proj"])


def test_all_linear_leaves_the_head_out():
    found = targets(target_modules="all-linear")
    assert found == [n for n, m in MODULES.items() if isinstance(m, nn.Linear) and n != "head"]


def test_roles_are_the_family_s_names():
    expected = targets(target_modules=["q_proj", "v_proj"])
    assert targets(model_type="llama", target_modules=["role:query", "role:value"]) == expected
    assert targets(model_type="llama") == expected  # the default


@pytest.mark.parametrize(
    ("family", "query", "value"),
    [
        ("biogpt", "q_proj", "v_proj"),
        ("deepseek_v3", "q_b_proj", "kv_b_proj"),
        ("gemma4_text", "q_proj", "v_proj"),
        ("internlm3", "q_proj", "v_proj"),
        ("minimax", "q_proj", "v_proj"),
        ("openai-gpt", "c_attn", "c_attn"),
        ("qwen3_5_text", "q_proj", "v_proj"),
        ("rembert", "query", "value"),
        ("rwkv", "receptance", "attention.value"),
        ("xglm", "q_proj", "v_proj"),
        ("xlm", "q_lin", "v_lin"),
    ],
)
def test_families_beyond_the_table_are_recognised_by_the_names_they_have(family, query, value):
    config = transformers.AutoConfig.for_model(family, num_hidden_layers=4, n_layers=4)
    with torch.device("meta"):
        modules = modules_of(transformers.AutoModelForCausalLM.from_config(config))
    found = match_targets(modules, LoraConfig(), model_type=family, kinds=("linear",), heads=())
    assert found == matching(modules, [query, value], "target_modules")
    assert not any(".mlp." in name for name in found)


def test_excluded_and_saved_modules_are_left_out():
    assert targets(target_modules=["v_proj"], exclude_modules=["side.layers.0.v_proj"]) == [f"{x}.v_proj" for x in BODY]
    assert targets(target_modules=["v_proj"], exclude_modules=r"body.*") == ["side.layers.0.v_proj"]
    assert targets(target_modules=["v_proj"], modules_to_save=["body"]) == ["side.layers.0.v_proj"]
    assert "head" not in targets(target_modules=["v_proj", "head"], modules_to_save=["head"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layers_to_transform": 1}, ["body.layers.1.v_proj"]),
        ({"layers_to_transform": [2, 0]}, ["body.layers.0.v_proj", "body.layers.2.v_proj", "side.layers.0.v_proj"]),
        ({"layers_to_transform": range(1, 3)}, ["body.layers.1.v_proj", "body.layers.2.v_proj"]),
        ({"layers_to_transform": [0], "layers_pattern": "body.layers"}, ["body.layers.0.v_proj"]),
        ({"layers_to_transform": [0], "layers_pattern": ["side.layers", "h"]}, ["side.layers.0.v_proj"]),
    ],
)
def test_numbered_layers(fields, expected):
    assert targets(target_modules=["v_proj"], **fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q_prj"]}, r"target_modules: 'q_prj' matches no module; did you mean 'q_proj'\?"),
        ({"target_modules": ["v_proj", "k_proj"]}, r"'k_proj' matches no module"),
        ({"target_modules": ["nope"]}, r"names in this model: .*q_proj \(5\), v_proj \(4\), norm \(4\), head \(1\)"),
        ({"target_modules": "v_proj"}, r"matches no whole module name; a list names modules: \[v_proj\]"),
        ({"target_modules": "proj"}, "the regular expression 'proj' matches no whole module name"),
        ({"target_modules": []}, "no module is left to adapt"),
        ({"target_modules": ["v_proj"], "exclude_modules": ["w_proj"]}, "exclude_modules: 'w_proj' matches no module"),
        ({"target_modules": ["v_proj"], "exclude_modules": "x"}, "exclude_modules: the regular expression 'x'"),
        ({"target_modules": ["v_proj"], "exclude_modules": ["v_proj"]}, "no module is left to adapt"),
        (
            {"target_modules": ["v_proj"], "layers_to_transform": [0, 9]},
            r"in layers \[9\]; there are layers \[0, 1, 2\]",
        ),
        (
            {"target_modules": ["head"], "layers_to_transform": 0},
            r"no target is in layers \[0\]; there are layers \[\]",
        ),
        ({}, "nothing is known of the roles in a model of type None"),
        ({"target_modules": ["role:query"]}, "Name the modules, or use 'all-linear'"),
    ],
)
def test_what_matches_nothing_is_an_error(fields, message):
    with pytest.raises(TargetError, match=message):
        targets(**fields)


def test_usual_targets_that_are_not_there_are_explained():
    with pytest.raises(TargetError, match=r"'v' matches no module(.*\n)+  null means the roles query, value"):
        targets(model_type="t5")


def test_unknown_roles_and_families_are_named():
    with pytest.raises(TargetError, match=r"no role 'qery' in llama; did you mean 'query'\? Roles: query, key"):
        targets(model_type="llama", target_modules=["role:qery"])
    with pytest.raises(TargetError, match=r"no role 'ffn_gate' in bert\. Roles: query, key, value, attention_out"):
        targets(model_type="bert", target_modules=["role:ffn_gate"])


def test_a_kind_that_the_method_does_not_adapt_is_an_error():
    with pytest.raises(
        CapabilityError, match=r"cannot adapt 'embed', a Embedding \(kind embedding\); it adapts linear"
    ):
        targets(target_modules=["embed"])
    assert targets(target_modules=["embed"], kinds=("any",)) == ["embed"]


def test_all_linear_without_a_linear_layer_is_an_error():
    modules = modules_of(nn.Sequential(nn.Embedding(3, 4), nn.ReLU()))
    with pytest.raises(TargetError, match="found no linear layer"):
        match_targets(modules, LoraConfig(target_modules="all-linear"), model_type=None, kinds=("linear",), heads=())


def test_suffixes_mean_what_was_chosen():
    linear = [name for name, module in MODULES.items() if isinstance(module, nn.Linear)]
    for count in (1, 2, 3, len(linear)):
        for chosen in combinations(linear, count):
            assert matching(MODULES, suffixes(chosen, MODULES), "target_modules") == list(chosen)


def test_suffixes_are_short_where_they_can_be():
    assert suffixes([n for n in MODULES if n.endswith("v_proj")], MODULES) == ["v_proj"]
    assert suffixes(["body.layers.1.v_proj"], MODULES) == ["body.layers.1.v_proj"]


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_names_known_roles(family):
    roles = ARCHITECTURES[family]
    assert {"query", "value"} <= roles.keys() <= set(ROLES)
    assert all(name and not name.startswith(".") for name in roles.values())


@pytest.mark.parametrize("family", ["apertus", "arcee", "glm", "glm4", "starcoder2", "vit"])
def test_the_names_are_those_of_the_family(family):
    config = transformers.AutoConfig.for_model(family, num_hidden_layers=1, head_dim=64)
    with torch.device("meta"):
        modules = modules_of(transformers.AutoModel.from_config(config))
    roles = roles_of(family, modules)
    assert all(matching(modules, [name], role) for role, name in roles.items())
    assert set(ROLES) - {"ffn_gate", "attention"} <= roles.keys()
