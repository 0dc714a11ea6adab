"""QA-LoRA: the numbers of PEFT's own variant, on a quantised layer; merging, which PEFT has not; and refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from adapterkit.errors import CapabilityError, ConfigError
from adapterkit.testing.capabilities import PackedLinear
from tests.parity.helpers import add_noise, quiet

with quiet():
    from peft.tuners.lora.variants import QALoraLinearVariant

X = torch.linspace(-2, 2, 3 * 5 * 8).reshape(3, 5, 8).sin()


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(PackedLinear(nn.Linear(8, 6)))


def config(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["0"], "use_qalora": True, "qalora_group_size": 4, **fields})


def moved(**fields) -> PeftModel:
    model = get_peft_model(base(), config(**fields))
    add_noise(model)
    return model.eval()


def linear(weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.detach().clone())
    return made


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "lora_alpha": 3}, {"qalora_group_size": 2}])
def test_numbers_and_gradients_are_those_of_peft(fields):
    model = moved(**fields)
    ours = model.get_base_model()[0].adapters["default"]
    theirs = SimpleNamespace(
        lora_A={"a": linear(ours.lora_A.weight)},
        lora_B={"a": linear(ours.lora_B.weight)},
        lora_dropout={"a": nn.Identity()},
        scaling={"a": ours.scaling},
        qalora_group_size={"a": ours.group},
        in_features=8,
        training=False,
    )
    mine, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    y = model(mine)
    wanted = QALoraLinearVariant.forward(theirs, "a", other, base()(other))
    torch.testing.assert_close(y, wanted)
    y.cos().sum().backward()
    wanted.cos().sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)
    for factor, name in ((ours.lora_A, "lora_A"), (ours.lora_B, "lora_B")):
        torch.testing.assert_close(factor.weight.grad, getattr(theirs, name)["a"].weight.grad)


def test_the_first_factor_has_a_column_for_each_group():
    tensors = moved().get_base_model()[0].adapters["default"].tensors()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"lora_A.weight": (2, 2), "lora_B.weight": (6, 2)}


def test_it_starts_as_the_base_and_is_saved(tmp_path):
    assert torch.equal(get_peft_model(base(), config())(X), base()(X))
    model = moved()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(X), model(X))


def test_merging_is_exact_and_so_are_conversion_and_combination():
    model = moved()
    expected = model(X).detach()
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)
    model.unmerge_adapter()
    assert torch.equal(model(X), expected)
    converted = convert_to_lora(model, 2)
    assert not converted[0].use_qalora
    assert max(converted.errors.values()) < 1e-5
    model.add_weighted_adapter(["default"], [2.0], "twice", "svd")
    model.set_adapter("twice")
    torch.testing.assert_close(model(X) - base()(X), 2 * (expected - base()(X)), atol=1e-5, rtol=1e-4)
    assert not model.peft_config["twice"].use_qalora


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Linear(8, 6), {}, "use_qalora is for quantised linear layers, whose groups it follows, and not a Linear"),
        (nn.Embedding(8, 6), {}, "and not a Embedding"),
        (None, {"qalora_group_size": 3}, "qalora_group_size=3 does not divide a layer's 8 inputs"),
    ],
)
def test_layers_that_are_refused(layer, fields, message):
    with pytest.raises(CapabilityError, match=message):
        get_peft_model(base() if layer is None else nn.Sequential(layer), config(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [1]}],
)
def test_settings_that_are_refused(fields):
    with pytest.raises(ConfigError, match="use_qalora"):
        LoraConfig.from_dict(config().to_dict() | fields)


def test_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 32, quant_type="nf4")
    model = get_peft_model(nn.Sequential(layer.to("cpu")), config(qalora_group_size=16))
    add_noise(model)
    model.eval()
    x = torch.randn(2, 64)
    expected = model(x).detach()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected, atol=2e-2, rtol=1e-2)
