"""Quantised base models, for real: bitsandbytes in 8 and 4 bits and torchao; on a GPU where there is one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from adapterkit import (
    PeftModel,
    cast_mixed_precision_params,
    get_model_status,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn import storage
from adapterkit.registry import methods
from tests.parity.helpers import add_noise, peft, quiet

pytestmark = pytest.mark.filterwarnings("ignore")  # the quantisers' own

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
         "vocab_size": 32, "num_hidden_layers": 2}  # fmt: skip
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IDS = torch.arange(10, device=DEVICE).reshape(2, 5)
BITS = {
    "8bit": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4_double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
KINDS = ["8bit", "nf4", "fp4", "nf4_double", "torchao"]
FIELDS = {
    "lora": {"r": 4},
    "ia3": {"feedforward_modules": []},
    "loha": {"r": 4},
    "oft": {"oft_block_size": 8},
    "vera": {"r": 8},
    "hra": {"r": 4},
}
METHODS = [name for name in FIELDS if name in methods]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The directory of a small model in full precision."""
    path = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    return path


@pytest.fixture
def base(dense):
    """Makes the model, quantised in some way."""

    def make(kind, **options):
        if kind == "torchao":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            model = LlamaForCausalLM.from_pretrained(dense, device_map=DEVICE)
            quantize_(
                model,
                Int8WeightOnlyConfig(),
                lambda module, name: isinstance(module, nn.Linear) and "proj" in name,
            )
            return model
        config = BitsAndBytesConfig(**BITS[kind], bnb_4bit_compute_dtype=torch.float32)
        return LlamaForCausalLM.from_pretrained(
            dense, quantization_config=config, dtype=torch.float32, device_map=DEVICE
        )

    return make


def config(method, **fields):
    targets = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return methods[method](**{**targets, **FIELDS[method], **fields})


@torch.no_grad()
def logits(model, **inputs):
    """Without gradients, on which bitsandbytes' choice of a kernel depends."""
    return model.eval()(IDS, **inputs).logits


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_train_save_load_and_merge(tmp_path, base, kind, method):
    model = get_peft_model(
        prepare_model_for_kbit_training(base(kind), use_gradient_checkpointing=False), config(method)
    )
    assert get_model_status(model).quantization_backend == {"8bit": "bnb 8bit", "torchao": "torchao"}.get(
        kind, "bnb 4bit"
    )
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    frozen = storage.read(layer)
    losses = train(model)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(storage.read(layer), frozen, atol=0, rtol=1e-2)
    expected = logits(model)

    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(logits(again), expected)

    merged = again.merge_and_unload()
    layers = [m for n, m in merged.named_modules() if n.endswith(("q_proj", "v_proj"))]
    assert {type(layer) for layer in layers} == {nn.Linear}
    assert {layer.weight.dtype for layer in layers} == {torch.float32}
    tolerance = 1e-4 if kind == "torchao" else 5e-2  # bitsandbytes' products round their inputs, too
    torch.testing.assert_close(logits(merged), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_unmerging_and_disabling_are_exact(base, kind):
    model = get_peft_model(base(kind), config("lora"))
    add_noise(model)
    model.eval()
    adapted = logits(model)
    with model.disable_adapter():
        plain = logits(model)
    model.merge_adapter()
    assert max(model.base_model.merge_errors.values()) == 0
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    model.unmerge_adapter()
    assert torch.equal(logits(model), adapted)
    assert get_model_status(model).quantization_backend is not None


def test_what_was_requantised_is_so_again_where_unloading_fails(base):
    model = get_peft_model(base("8bit"), config("lora"))
    add_noise(model, 0.02)
    model.add_adapter("other", config("lora"))
    model.merge_adapter(requantise=True)
    expected = logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapters.other.lora_B" in name:
                parameter.fill_(torch.nan)
    with pytest.raises(StateError, match="not finite"):
        model.merge_and_unload(safe_merge=True, adapter_names=["other"])
    assert torch.equal(logits(model), expected)
    assert storage.is_quantised(model.base_model.layers["model.layers.0.self_attn.q_proj"].base_layer)


@pytest.mark.parametrize("kind", list(BITS))
def test_requantising_when_asked(base, kind):
    model = get_peft_model(base(kind), config("lora"))
    add_noise(model, 0.02)
    exact = copy.deepcopy(model).merge_and_unload().model.layers[0].self_attn.q_proj.weight
    merged = model.merge_and_unload(requantise=True)
    layer = merged.model.layers[0].self_attn.q_proj
    assert storage.backend(layer) == ("bnb 8bit" if kind == "8bit" else "bnb 4bit")
    errors = model.base_model.merge_errors
    assert errors["model.layers.0.self_attn.q_proj"] == float((storage.read(layer) - exact).abs().max())
    step = exact.abs().max() * (2 / 255 if kind == "8bit" else 0.2)
    assert 0 < max(errors.values()) < step
    if kind != "8bit":
        assert layer.weight.quant_state.nested == (kind == "nf4_double")
        assert layer.weight.quant_state.quant_type == kind[:3]
    assert logits(merged).isfinite().all()


def test_requantising_what_is_not_known_changes_nothing(base):
    model = get_peft_model(base("torchao"), config("lora"))
    with pytest.raises(CapabilityError, match="torchao weights cannot be quantised anew"):
        model.merge_adapter(requantise=True)
    assert get_model_status(model).merged_adapters == []


@pytest.mark.parametrize("kind", list(BITS))
def test_a_merged_model_can_be_saved_and_loaded(tmp_path, base, kind):
    model = get_peft_model(base(kind), config("lora"))
    add_noise(model)
    merged = model.merge_and_unload().eval()
    merged.save_pretrained(tmp_path)
    expected = logits(merged)
    again = LlamaForCausalLM.from_pretrained(tmp_path, device_map=DEVICE).eval()
    assert type(again.model.layers[0].self_attn.q_proj) is nn.Linear
    assert storage.is_quantised(again.model.layers[0].self_attn.k_proj)
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)


def test_nothing_quantised_left_is_no_quantised_model(base):
    model = get_peft_model(base("nf4"), config("lora", target_modules="all-linear"))
    merged = model.merge_and_unload()
    assert not hasattr(merged.config, "quantization_config")
    assert not getattr(merged, "is_quantized", False)


@pytest.mark.parametrize("kind", ["8bit", "nf4"])
def test_numbers_and_files_are_pefts(tmp_path, base, kind):
    with quiet():
        theirs = peft.get_peft_model(base(kind), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(base(kind), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs))
    assert ours.get_nb_trainable_parameters()[1] == theirs.get_nb_trainable_parameters()[1]
    exact = logits(ours)
    with quiet():
        rounded = logits(theirs.merge_and_unload())  # to the quantiser's steps again
    assert (logits(ours.merge_and_unload()) - exact).abs().max() < (rounded - exact).abs().max() / 2


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_preparing_checkpoints_gradients(base, reentrant):
    options = None if reentrant is None else {"use_reentrant": reentrant}
    model = prepare_model_for_kbit_training(base("nf4"), gradient_checkpointing_kwargs=options)
    assert model.is_gradient_checkpointing
    assert not any(p.requires_grad for p in model.parameters())
    model = get_peft_model(model, config("lora")).train()
    losses = train(model)
    assert losses[-1] < losses[0]


def test_preparing_casts_what_is_not_quantised(dense):
    quantisation = BitsAndBytesConfig(**BITS["nf4"])
    model = LlamaForCausalLM.from_pretrained(
        dense, quantization_config=quantisation, dtype=torch.bfloat16, device_map=DEVICE
    )
    prepare_model_for_kbit_training(model)
    kinds = {type(p).__name__: p.dtype for p in model.parameters()}
    assert kinds == {"Parameter": torch.float32, "Params4bit": torch.uint8}


def test_preparing_a_model_in_full_precision_only_freezes_it(dense):
    model = LlamaForCausalLM.from_pretrained(dense)
    prepare_model_for_kbit_training(model)
    assert not model.is_gradient_checkpointing
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["none", "nf4", "torchao"])
def test_mixed_precision_casts_leave_quantised_weights_alone(dense, base, kind):
    model = get_peft_model(LlamaForCausalLM.from_pretrained(dense) if kind == "none" else base(kind), config("lora"))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if storage.keeps_type(p)}
    cast_mixed_precision_params(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter.dequantize() if kind == "torchao" else parameter,
                               before[name].dequantize() if kind == "torchao" else before[name])  # fmt: skip
        else:
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize("kind", ["8bit", "nf4"])
def test_copies_and_pickles(base, kind):
    model = get_peft_model(base(kind), config("lora"))
    add_noise(model)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    if kind == "nf4":  # bitsandbytes' 8-bit state does not survive pickling
        assert torch.equal(logits(pickle.loads(pickle.dumps(model))), expected)


def test_rows_are_routed_on_a_quantised_base(base):
    model = get_peft_model(base("nf4"), config("lora"), "a")
    model.add_adapter("b", config("lora"))
    model.set_requires_grad("b", True)
    add_noise(model)
    model.eval()
    routed = logits(model, adapter_names=["b", "__base__"])
    model.set_adapter("b")
    torch.testing.assert_close(routed[0], logits(model)[0])
    torch.testing.assert_close(routed[1], logits(base("nf4"))[1])


def test_an_unknown_quantiser_is_read_off_by_running_it():
    class Packed(nn.Module):
        """Stores its weight as integers under a name of its own."""

        def __init__(self, layer):
            super().__init__()
            self.in_features, self.out_features = layer.in_features, layer.out_features
            self.register_buffer("packed", (layer.weight * 64).round().to(torch.int8))
            self.bias = layer.bias

        def forward(self, x):
            return nn.functional.linear(x, self.packed.float() / 64, self.bias)

    torch.manual_seed(0)
    layer = Packed(nn.Linear(6, 4))
    model = get_peft_model(nn.Sequential(layer), methods["lora"](r=2, target_modules=["0"]))
    add_noise(model)
    x = torch.randn(3, 6)
    expected = model.eval()(x)
    torch.testing.assert_close(storage.read(layer), layer.packed.float() / 64)
    assert storage.backend(layer) == "Packed"
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
