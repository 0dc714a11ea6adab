"""CorDA and LoRA-GA against PEFT's: the same factors from the same data, and the same numbers."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda as their_corda
from transformers.pytorch_utils import Conv1D

import adapterkit
from adapterkit import LoraConfig, preprocess_corda, preprocess_loraga
from adapterkit.checkpoint.state import get_peft_model_state_dict
from tests.parity.helpers import quiet, run, state_of
from tests.parity.layers import Net, seeded

TARGETS = ["query", "value"]


class Transposed(Net):
    @staticmethod
    def layer():
        return torch.nn.ModuleDict({"query": Conv1D(8, 8), "value": Conv1D(8, 8)})


def data(rows=1):
    return [torch.randn(rows, 20, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]


def both(kwargs, prepare, make):
    with quiet():
        theirs_base, config = seeded(make)(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, **kwargs[1])
        prepare[1](theirs_base, config)
        theirs = peft.get_peft_model(theirs_base, config).eval()
    base, config = seeded(make)(), LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, **kwargs[0])
    prepare[0](base, config)
    return adapterkit.get_peft_model(base, config).eval(), theirs


def assert_equal(mine, theirs, tmp_path, factory):
    state, expected = get_peft_model_state_dict(mine), state_of(theirs)
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, atol=1e-4, rtol=1e-3, msg=key)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(run(mine, x), run(factory(), x), atol=1e-5, rtol=1e-4)  # it starts as the base model
    with torch.no_grad():
        for key, tensor in expected.items():
            state[key].copy_(tensor)
            tensor.mul_(1.1)
            state[key].mul_(1.1)
    torch.testing.assert_close(run(mine, x), run(theirs, x), atol=1e-3, rtol=1e-3)
    mine.save_pretrained(tmp_path)
    again = adapterkit.PeftModel.from_pretrained(factory(), tmp_path)
    assert torch.equal(run(again, x), run(mine, x))
    merged = run(mine.merge_and_unload(), x)
    torch.testing.assert_close(merged, run(again, x))


@pytest.mark.parametrize("make", [Net, Transposed])
@pytest.mark.parametrize("how", ["ipm", "kpm"])
def test_corda(how, make, tmp_path):
    settings = {"corda_method": how, "covariance_file": str(tmp_path / "covariances.pt")}

    def ours(model, config):
        preprocess_corda(model, config, lambda: [model(x) for x in data()])

    def theirs(model, config):
        their_corda(model, config, lambda: [model(x) for x in data()])

    kwargs = {"init_lora_weights": "corda"}
    theirs_config = {**kwargs, "corda_config": CordaConfig(corda_method=how)}
    mine, other = both(({**kwargs, "corda_config": settings}, theirs_config), (ours, theirs), make)
    assert_equal(mine, other, tmp_path / "adapter", seeded(make))
    again, config = seeded(make)(), mine_config(settings)
    preprocess_corda(again, config)  # from the file
    first = get_peft_model_state_dict(adapterkit.get_peft_model(again, config))
    assert torch.equal(first["base_model.model.body.layers.0.query.start_A"], start_of(mine_from(settings, make)))


def mine_config(settings):
    fields = {"init_lora_weights": "corda", "corda_config": settings}
    return LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, **fields)


def mine_from(settings, make):
    model, config = seeded(make)(), mine_config(settings)
    preprocess_corda(model, config)
    return adapterkit.get_peft_model(model, config)


def start_of(model):
    return model.base_model.layers["body.layers.0.query"].adapters["default"].start_A


def step(model):
    for x in data(rows=2):
        model(x).sin().sum().backward()


# With scale="weight_svd" PEFT's factor is as good as a randomised decomposition of so few directions: not reproducible.
@pytest.mark.parametrize("direction", ["ArBr", "A2rBr", "ArB2r"])
@pytest.mark.parametrize("scale", ["stable", "gd_scale", "unit"])
def test_lora_ga(direction, scale, tmp_path):
    settings = {"direction": direction, "scale": scale}
    kwargs = {"init_lora_weights": "lora_ga"}
    mine, theirs = both(
        ({**kwargs, "lora_ga_config": settings}, {**kwargs, "lora_ga_config": LoraGAConfig(**settings)}),
        (
            lambda model, config: preprocess_loraga(model, config, lambda: step(model)),
            lambda model, config: peft.preprocess_loraga(model, config, lambda: step(model)),
        ),
        Net,
    )
    signs(mine, theirs)
    assert_equal(mine, theirs, tmp_path, seeded(Net))


def signs(mine, theirs):
    """A decomposition's directions have no sign of their own: take PEFT's, in the factors and in the start."""
    state, expected = get_peft_model_state_dict(mine), state_of(theirs)
    with torch.no_grad():
        for key in expected:
            flips = (state[key] * expected[key]).sum(dim=1 if "lora_A" in key else 0).sign()
            flips = flips[:, None] if "lora_A" in key else flips
            start = key.replace("lora_A.weight", "start_A").replace("lora_B.weight", "start_B")
            state[key].mul_(flips)
            state[start].mul_(flips)


@pytest.mark.parametrize("make", [Net, Transposed])
def test_lora_ga_scaled_to_the_weight(make):
    base = seeded(make)()
    settings = {"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "weight_svd", "direction": "A2rBr"}}
    config = LoraConfig(r=2, target_modules=TARGETS, **settings)
    preprocess_loraga(base, config, lambda: step(base))
    adapter = adapterkit.get_peft_model(base, config).base_model.layers["body.layers.0.query"].adapters["default"]
    top = torch.linalg.svdvals(adapter.layer.weight)[0]
    torch.testing.assert_close(adapter.lora_B.weight[:, 0].norm(), top)
