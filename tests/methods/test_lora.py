"""LoRA and its variants: the contract, and what each variant claims."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.errors import CapabilityError
from adapterkit.methods.lora import init
from adapterkit.nn.view import LayerView
from adapterkit.testing import AdapterContract
from tests.models import batch, move, net

LINEAR = {"linear": nn.Linear(8, 12)}
EVERY_KIND = {
    "linear_no_bias": nn.Linear(12, 8, bias=False),
    "transposed": Conv1D(12, 8),
    "embedding": nn.Embedding(10, 8, padding_idx=0),
    "conv2d": nn.Conv2d(8, 12, (1, 3), padding="same", dilation=2),
}


class TestDora(AdapterContract):
    config = LoraConfig(r=2, use_dora=True)
    layers = EVERY_KIND


class TestRankStabilised(AdapterContract):
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, compute_dtype="adapter")
    layers = LINEAR


class TestWithBias(AdapterContract):
    config = LoraConfig(r=2, lora_bias=True)
    layers = {"linear": nn.Linear(8, 12), "linear_no_bias": nn.Linear(8, 8, bias=False)} | {
        "conv2d": nn.Conv2d(8, 12, 3, padding="same", dilation=2)
    }

    def test_attention_of_pytorch_is_adapted_or_refused(self):
        with pytest.raises(CapabilityError, match="lora_bias is not possible on a parameter"):
            get_peft_model(
                nn.Sequential(nn.MultiheadAttention(8, 2)),
                self.config.changed({"target_modules": ["0"]}, source="test"),
            )


class TestPissa(AdapterContract):
    config = LoraConfig(r=2, init_lora_weights="pissa")
    layers = LINEAR


class TestOlora(AdapterContract):
    config = LoraConfig(r=2, init_lora_weights="olora", use_dora=True)
    layers = LINEAR


class TestOrthogonal(AdapterContract):
    config = LoraConfig(r=4, init_lora_weights="orthogonal")
    layers = LINEAR


def adapter(layer: nn.Module, **fields):
    torch.manual_seed(0)
    config = LoraConfig(**fields)
    return config.adapter_class()(config, LayerView(layer))


def drawn(made) -> None:
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize(("fields", "scale"), [({}, 16 / 4), ({"use_rslora": True}, 16 / 2)])
def test_the_update_is_the_scaled_product(fields, scale):
    layer = nn.Linear(8, 6)
    made, x = adapter(layer, r=4, lora_alpha=16, **fields), torch.randn(3, 8)
    drawn(made)
    update = scale * (x @ made.lora_A.weight.T) @ made.lora_B.weight.T
    torch.testing.assert_close(made.adapt_output(layer(x), x), layer(x) + update)


def test_dora_is_a_length_and_a_direction():
    layer = nn.Linear(8, 6)
    made, x = adapter(layer, r=4, use_dora=True), torch.randn(3, 8)
    drawn(made)
    direction = layer.weight + made.scaling * made.lora_B.weight @ made.lora_A.weight
    weight = made.lora_magnitude_vector[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made.adapt_output(layer(x), x), nn.functional.linear(x, weight, layer.bias))
    torch.testing.assert_close(made.adapt_weight(layer.weight), weight)


def test_dropout_leaves_an_embedding_s_indices_alone():
    layer, x = nn.Embedding(5, 4), torch.arange(5)
    made = adapter(layer, r=2, lora_dropout=0.5)
    drawn(made)
    y = layer(x)
    assert torch.equal(made.train().adapt_output(y, x), made.eval().adapt_output(y, x))


def test_dropout_on_a_convolution():
    layer, x = nn.Conv1d(4, 6, 3), torch.randn(2, 4, 9)
    made, plain = adapter(layer, r=2, lora_dropout=0.5), adapter(layer, r=2)
    y = layer(x)
    for each in (made, plain):
        torch.manual_seed(1)
        drawn(each)
    torch.testing.assert_close(made.eval().adapt_output(y, x), plain.adapt_output(y, x))
    assert not torch.allclose(made.train().adapt_output(y, x), plain.adapt_output(y, x))


@pytest.mark.parametrize("scheme", [True, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_3"])
def test_every_start_is_the_base(scheme):
    layer = nn.Linear(16, 12)
    made, x = adapter(layer, r=4, init_lora_weights=scheme), torch.randn(3, 16)
    torch.testing.assert_close(made.adapt_output(layer(x), x), layer(x), atol=1e-5, rtol=1e-4)
    assert made.lora_A.weight.any()


def test_a_random_start_is_not():
    layer = nn.Linear(16, 12)
    made, x = adapter(layer, r=4, init_lora_weights=False), torch.randn(3, 16)
    assert not torch.allclose(made.adapt_output(layer(x), x), layer(x))


def test_pissa_takes_the_principal_part():
    weight = torch.randn(12, 16)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    a, b = init.from_weight("pissa", weight, 4, 2.0)
    torch.testing.assert_close(2.0 * b @ a, u[:, :4] * s[:4] @ vh[:4], atol=1e-5, rtol=1e-4)


def test_orthogonal_factors_cancel_without_being_zero():
    a, b = torch.empty(4, 16), torch.empty(12, 4)
    init.start(a, b, "orthogonal", 4)
    assert (b @ a).abs().max() < 1e-6
    assert min(a.abs().max(), b.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Conv1d(4, 4, 3, groups=2), {"r": 3}, "r=3 is no multiple of the convolution's 2 groups"),
        (nn.Conv1d(4, 4, 3, groups=2), {"use_dora": True}, "use_dora is not possible on a grouped convolution"),
        (nn.Embedding(5, 4), {"lora_bias": True}, "lora_bias is not possible on an embedding"),
        (nn.Embedding(5, 4), {"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is"),
    ],
)
def test_what_is_not_possible_is_said(layer, fields, message):
    with pytest.raises(CapabilityError, match=message):
        adapter(layer, **fields)


@pytest.mark.parametrize("scheme", ["pissa", "pissa_niter_4", "olora"])
def test_starts_from_the_weight_are_the_same_under_any_seed_and_name(tmp_path, scheme):
    """The product that is subtracted is made anew on loading: it may depend on the weight only."""
    torch.manual_seed(1)
    model = get_peft_model(net(), LoraConfig(r=2, init_lora_weights=scheme, target_modules=["query"]))
    move(model)
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(2)
    loaded = PeftModel.from_pretrained(net(), tmp_path, "another name")
    torch.testing.assert_close(loaded(batch()), model(batch()), atol=1e-6, rtol=1e-5)


class TestDropout:
    def test_drops_the_adapter_s_input_only_and_only_in_training(self):
        model = get_peft_model(net(), LoraConfig(r=2, lora_dropout=0.5, target_modules=["query", "value"]))
        move(model)
        x = batch()
        plain = get_peft_model(net(), LoraConfig(r=2, target_modules=["query", "value"])).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(x), plain(x))
        model.train()
        assert not torch.equal(model(x), model(x))
        with model.disable_adapter():
            assert torch.equal(model(x), net()(x))

    def test_the_mean_is_kept(self):
        layer = nn.Linear(8, 6)
        made, x = adapter(layer, r=4, lora_dropout=0.5, init_lora_weights=False), torch.randn(1, 8)
        without = made.eval().adapt_output(layer(x), x)
        mean = made.train().adapt_output(layer(x).expand(20000, -1), x.expand(20000, -1)).mean(0)
        torch.testing.assert_close(mean, without[0], atol=0.05, rtol=0)


class TestTypes:
    """``compute_dtype`` says where the low-rank products are rounded."""

    def test_the_adapter_s_type_is_exact(self):
        errors = {}
        for kind in ("input", "adapter"):
            layer = nn.Linear(64, 64).to(torch.bfloat16)
            torch.manual_seed(1)
            made, x = adapter(layer, r=4, compute_dtype=kind), torch.randn(32, 64).to(torch.bfloat16)
            drawn(made)
            exact = made.scaling * x.float() @ made.lora_A.weight.T @ made.lora_B.weight.T
            update = made._update(x)
            errors[kind] = ((update.float() - exact).norm() / exact.norm()).item()
        assert errors["adapter"] < 1e-5 < errors["input"] < 1e-2

    def test_it_is_not_in_the_file(self, tmp_path):
        LoraConfig(compute_dtype="adapter").save_pretrained(tmp_path)
        assert "compute_dtype" not in (tmp_path / "adapter_config.json").read_text()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("needs_x", [False, True])
def test_the_fused_form_has_the_onion_s_gradients(autocast, bias, needs_x):
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=bias).requires_grad_(False)
    model = get_peft_model(nn.Sequential(layer), LoraConfig(r=2, target_modules=["0"]))
    move(model)
    hooked = copy.deepcopy(model)
    hooked.get_base_model()[0].base_layer.register_forward_hook(lambda *_: None)  # takes the onion
    results = []
    for each in (model, hooked):
        x = torch.linspace(-1, 1, 40).reshape(5, 8).requires_grad_(needs_x)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = each(x)
        y.float().cos().sum().backward()
        grads = [p.grad for p in each.parameters() if p.requires_grad] + ([x.grad] if needs_x else [])
        results.append((y, *grads))
    assert results[0][0].dtype == results[1][0].dtype
    tolerance = {"atol": 0.02, "rtol": 0.02} if autocast else {}
    torch.testing.assert_close(results[0], results[1], **tolerance)
