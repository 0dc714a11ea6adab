"""Layers that are never called, as the block around them reads their weight, or whose call does more than multiply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import Llama4TextConfig, Llama4TextModel, MambaConfig, MambaModel, WavLMConfig, WavLMModel

from adapterkit import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from adapterkit.errors import CapabilityError
from tests.models import move


def mamba() -> nn.Module:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, state_size=2, time_step_rank=2)
    return MambaModel(config).eval()


def wavlm() -> nn.Module:
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(4,), conv_stride=(5,),
        conv_kernel=(10,), num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return WavLMModel(config).eval()


def llama4() -> nn.Module:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=4,
        intermediate_size=8, intermediate_size_mlp=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    return Llama4TextModel(config).eval()


BASES = {
    "llama4": (llama4, torch.arange(6)[None], "layers.0.feed_forward", ["router"]),
    "mamba": (mamba, torch.arange(6)[None], "layers.0.mixer", ["dt_proj", "in_proj", "x_proj"]),
    "wavlm": (wavlm, torch.linspace(-1, 1, 60)[None], "encoder.layers.0.attention", ["q_proj", "v_proj"]),
}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]


def run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).last_hidden_state


def adapted(make, targets) -> PeftModel:
    model = get_peft_model(make(), LoraConfig(r=2, target_modules=targets))
    move(model)
    return model.eval()


def test_they_are_adapted_trained_saved_and_merged(base):
    make, x, block, targets = base
    model = adapted(make, targets)
    y = run(model, x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    state = get_peft_model_state_dict(model)
    assert {key.rsplit(".", 2)[0] for key in state} == {f"base_model.model.{block}.{name}" for name in targets}
    other = get_peft_model(make(), LoraConfig(r=2, target_modules=targets)).eval()
    set_peft_model_state_dict(other, state)
    assert torch.equal(run(other, x), y)
    with model.disable_adapter():
        assert torch.equal(run(model, x), run(make(), x))
    plain = model.merge_and_unload()
    torch.testing.assert_close(run(plain, x), y)
    assert plain.state_dict().keys() == make().state_dict().keys()


def test_they_are_converted(base):
    make, x, _, targets = base
    model = adapted(make, targets)
    config, state = convert_to_lora(model, 2)
    assert config.target_modules == targets
    other = get_peft_model(make(), config).eval()
    set_peft_model_state_dict(other, state)
    torch.testing.assert_close(run(other, x), run(model, x))


def test_what_cannot_be_read_so_is_an_error():
    with pytest.raises(CapabilityError, match=r"'layers.0.mixer.conv1d' is never called: 'layers.0.mixer' reads its w"):
        get_peft_model(mamba(), LoraConfig(target_modules=["conv1d"]))
    with pytest.raises(CapabilityError, match=r"lora_dropout .* a MambaMixer reads; exclude_modules=\['dt_proj'\] le"):
        get_peft_model(mamba(), LoraConfig(target_modules=["dt_proj"], lora_dropout=0.1))
    for bias in ("all", "lora_only"):
        with pytest.raises(CapabilityError, match=rf"bias='{bias}': 'layers.0.mixer.\w+' is never called: the block"):
            get_peft_model(mamba(), LoraConfig(target_modules=["dt_proj"], bias=bias))
