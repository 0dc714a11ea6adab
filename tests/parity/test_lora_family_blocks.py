"""BD-LoRA: PEFT's numbers and files; what the blocks are; merging, mixing and combining; and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, convert_to_lora, create_lorafa_optimizer, get_peft_model
from adapterkit.errors import CapabilityError, TargetError
from adapterkit.hotswap import prepare_model_for_compiled_hotswap
from adapterkit.methods.lora.combine import since
from tests.parity.helpers import add_noise, assert_parity, peft
from tests.parity.layers import Net, seeded

X = torch.linspace(-2, 2, 3 * 5 * 8).reshape(3, 5, 8).sin()


def blocks(**fields) -> dict:
    return {"target_modules_bd_a": ["value"], "target_modules_bd_b": ["query"], "nblocks": 2, **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"init_lora_weights": False},
        {"bias": "lora_only"},
        {"rank_pattern": {"layers.1.query": 2}},
        {"use_bdlora": blocks(target_modules_bd_a=None, match_strict=False)},
        {"use_bdlora": blocks(target_modules_bd_b=["layers.1", "layers.2"], match_strict=False, nblocks=4),
         "target_modules": ["query"]},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_and_files_are_those_of_peft(fields):
    torch.manual_seed(3)
    kwargs = {"r": 4, "target_modules": ["query", "value"], "use_bdlora": blocks(), **fields}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(Net), X)


def config(**fields) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "target_modules": ["0"], "use_bdlora": {"target_modules_bd_a": ["0"], "nblocks": 2}, **fields}
    )


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Conv1d(2, 4, 1), nn.Linear(8, 7))


def adapted(**fields):
    model = get_peft_model(base()[:1], config(**fields))
    add_noise(model)
    return model.eval()


@pytest.mark.parametrize("side", ["a", "b"])
def test_each_device_computes_with_its_own_block(side):
    model = adapted(use_bdlora={f"target_modules_bd_{side}": ["0"], "nblocks": 2})
    adapter = model.get_base_model()[0].adapters["default"]
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (tuple(a.shape), tuple(b.shape)) == (((4, 4), (6, 4)) if side == "a" else ((4, 8), (6, 2)))
    if side == "a":  # half of the inputs each
        parts = [x @ a[rows].T @ b[:, rows].T for x, rows in zip(X.chunk(2, -1), (slice(2), slice(2, 4)), strict=True)]
        update = parts[0] + parts[1]
    else:  # half of the outputs each
        low = (X @ a.T).chunk(2, -1)
        update = torch.cat([part @ block.T for part, block in zip(low, b.chunk(2), strict=True)], -1)
    torch.testing.assert_close(model(X), base()[:1](X) + update * adapter.scaling)


def test_it_starts_as_the_base():
    assert torch.equal(get_peft_model(base()[:1], config())(X), base()[:1](X))


def test_merging_is_exact_and_so_are_conversion_and_combination():
    model = adapted()
    expected = model(X).detach()
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)
    model.unmerge_adapter()
    assert torch.equal(model(X), expected)
    converted = convert_to_lora(model, 4)
    assert converted[0].use_bdlora is None
    assert max(converted.errors.values()) < 1e-5
    model.add_weighted_adapter(["default"], [2.0], "twice", "linear")
    model.set_adapter("twice")
    torch.testing.assert_close(model(X) - base()[:1](X), 2 * (expected - base()[:1](X)), atol=1e-5, rtol=1e-4)
    assert model.peft_config["twice"].use_bdlora is None


def test_it_is_active_beside_another_and_routed():
    model = adapted()
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    base_y = base()[:1](X)
    alone = {}
    for name in ("default", "plain"):
        model.set_adapter(name)
        alone[name] = model(X) - base_y
    routed = model(X, adapter_names=["plain", "__base__", "default"]) - base_y
    torch.testing.assert_close(routed[0], alone["plain"][0])
    torch.testing.assert_close(routed[2], alone["default"][2])
    assert not routed[1].any()


def test_what_takes_both_factors_whole_is_refused():
    model = adapted()
    with pytest.raises(CapabilityError, match="LoRA-FA is not possible on a Linear with groups, blocks or experts"):
        create_lorafa_optimizer(model, 4, 8, 1e-3)
    with pytest.raises(CapabilityError, match="cannot be given another rank: experts, groups, blocks"):
        prepare_model_for_compiled_hotswap(model, target_rank=6)
    tensors = {"base_model.model.0.lora_A.weight": torch.ones(4, 4)}
    with pytest.raises(CapabilityError, match="with use_bdlora no two factors are the difference"):
        since(config(), tensors, tensors)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"use_dora": True}, ValueError, "use_bdlora and use_dora exclude each other"),
        ({"lora_bias": True}, ValueError, "use_bdlora and lora_bias exclude each other"),
        ({"init_lora_weights": "pissa"}, ValueError, "use_bdlora starts from true, false or gaussian, not 'pissa'"),
        ({"use_bdlora": {"target_modules_bd_a": ["x"], "target_modules_bd_b": ["x"]}}, ValueError, "both name"),
        ({"use_bdlora": {"nblock": 2}}, ValueError, "nblock"),
        ({"use_bdlora": {"target_modules_bd_b": ["1"]}}, TargetError, "nor target_modules_bd_b means 0; set"),
        ({"r": 3}, CapabilityError, "nblocks=2 does not divide r=3"),
        ({"use_bdlora": {"target_modules_bd_b": ["2"], "nblocks": 2}, "target_modules": ["2"]}, CapabilityError,
         "nblocks=2 does not divide a layer's outputs, 7"),
        ({"use_bdlora": {"target_modules_bd_b": ["1"], "nblocks": 2}, "target_modules": ["1"]}, CapabilityError,
         "for linear layers, and not a Conv1d"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_with_it(fields, error, said):
    with pytest.raises(error, match=said):
        get_peft_model(base(), config(**fields))


def test_a_layer_that_both_lists_mean_is_refused():
    both = {"target_modules_bd_a": ["la"], "target_modules_bd_b": ["query"], "nblocks": 2}
    with pytest.raises(TargetError, match=r"both mean body\.layers\.0\.query"):
        get_peft_model(seeded(Net)(), LoraConfig(r=4, target_modules=["query"], use_bdlora=both))
