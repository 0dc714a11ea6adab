"""Layers that are never called, as the block around them reads their weight, or whose call does more than multiply."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Llama4TextConfig, Llama4TextModel, MambaConfig, MambaModel, WavLMConfig, WavLMModel

from adapterkit import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, convert_to_lora, get_peft_model
from adapterkit.architectures import read_in
from adapterkit.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.targets.matching import modules_of
from adapterkit.targets.parameters import attention_spots, check_spots, is_read
from tests.models import move
from tests.nn.test_view import Int8
from tests.parity.helpers import peft, peft_model


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


@pytest.mark.parametrize("rank", [2, 3])
def test_they_are_combined(base, rank):
    make, x, _, targets = base
    model = get_peft_model(make(), LoraConfig(r=2, target_modules=targets, rank_pattern={targets[0]: rank}), "a").eval()
    model.add_adapter("b", LoraConfig(r=2, target_modules=targets))
    move(model)
    model.base_model.set_adapter(["a", "b"])
    both = run(model, x)
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "c", combination_type="cat")
    model.set_adapter("c")
    torch.testing.assert_close(run(model, x), both)


class Windows(nn.Module):
    """Reads the weights of its projections, as the attention of vision models does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.qkv.weight, self.qkv.bias).tanh(), self.proj.weight, self.proj.bias)


def test_attention_that_reads_its_projections_is_called_with_others():
    block = type("ShiftedWindowAttentionV2", (Windows,), {})
    model = get_peft_model(nn.Sequential(block()), LoraConfig(r=2, target_modules=["qkv", "proj"]))
    move(model)
    y = model(x := torch.randn(3, 4))
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(model.merge_and_unload()(x), y)


def test_a_name_that_several_blocks_share_goes_with_its_module():
    blocks = [type("Attention", (), {"__module__": f"timm.models.{m}"}) for m in ("beit", "vision_transformer")]
    assert [read_in(block) for block in blocks] == [("qkv",), ()]


class SamePadded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.kernel_size[1] - 1, 0, self.kernel_size[0] - 1)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.norm(), self.bias)


class Positions(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cumsum(-1) + 2)


OWN_CALLS = {
    "padding": (lambda: SamePadded(4, 4, 2, stride=2), torch.linspace(-1, 1, 200).reshape(2, 4, 5, 5)),
    "standardised": (lambda: Standardised(4, 4, 3), torch.linspace(-1, 1, 200).reshape(2, 4, 5, 5)),
    "positions": (lambda: Positions(8, 4), torch.ones(2, 3, dtype=torch.long)),
}


@pytest.mark.parametrize("kind", OWN_CALLS)
@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig, LoKrConfig])
def test_classes_with_a_call_of_their_own_are_called_with_the_changed_weight(kind, config):
    make, x = OWN_CALLS[kind]
    torch.manual_seed(0)
    base = nn.Sequential(make())
    y = base(x)
    model = get_peft_model(base, config(r=2, target_modules=["0"]))
    move(model)
    changed = model(x)
    changed.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not torch.allclose(changed, y)
    with model.disable_adapter():
        assert torch.equal(model(x), y)
    converted, state = convert_to_lora(model, 2)
    other = get_peft_model(nn.Sequential(make()), converted)
    set_peft_model_state_dict(other, state)
    torch.testing.assert_close(model.merge_and_unload()(x), changed)


def test_padding_in_the_call_is_what_peft_computes():
    make, x = OWN_CALLS["padding"]
    ours, theirs = nn.Sequential(make()), nn.Sequential(make())
    theirs.load_state_dict(ours.state_dict())
    fields = {"r": 2, "target_modules": ["0"], "init_lora_weights": False}
    theirs = peft_model(peft.LoraConfig(**fields), theirs).eval()
    model = get_peft_model(ours, LoraConfig(**fields)).eval()
    set_peft_model_state_dict(model, peft.get_peft_model_state_dict(theirs))
    torch.testing.assert_close(model(x), theirs(x))
    with pytest.raises(CapabilityError, match=r"lora_dropout is not possible on a convolution: weight of a SamePadded"):
        get_peft_model(nn.Sequential(make()), LoraConfig(target_modules=["0"], lora_dropout=0.1))


def test_a_file_may_have_been_trained_with_dropout(tmp_path):
    make, x = OWN_CALLS["padding"]
    base = nn.Sequential(make())
    theirs = nn.Sequential(make())
    theirs.load_state_dict(base.state_dict())
    config = peft.LoraConfig(r=2, target_modules=["0"], lora_dropout=0.1, init_lora_weights=False)
    theirs = peft_model(config, theirs).eval()
    theirs.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path)(x), theirs(x))
    with pytest.raises(CapabilityError, match="lora_dropout is not possible"):
        PeftModel.from_pretrained(nn.Sequential(make()), tmp_path, is_trainable=True)


def test_quantised_layers_are_called():
    model, name = mamba(), "layers.0.mixer.dt_proj"
    assert is_read(name, modules_of(model))
    mixer = model.layers[0].mixer
    mixer.dt_proj = Int8(mixer.dt_proj)
    assert not is_read(name, modules_of(model))


class Bend(LayerAdapter):
    mergeable = False


def test_a_method_that_states_no_weight_cannot_change_a_parameter():
    modules = modules_of(nn.Sequential(nn.MultiheadAttention(4, 2)))
    spots = attention_spots(modules, ["0"])
    check_spots(modules, spots, LayerAdapter, "AFFINE")
    assert len({spot.seed for spot in spots}) == 2  # each starts from numbers of its own
    with pytest.raises(CapabilityError, match=r"BEND cannot adapt '0.in_proj_weight'"):
        check_spots(modules, spots, Bend, "BEND")


def test_what_cannot_be_read_so_is_an_error():
    with pytest.raises(CapabilityError, match=r"'layers.0.mixer.conv1d' is never called: 'layers.0.mixer' reads its w"):
        get_peft_model(mamba(), LoraConfig(target_modules=["conv1d"]))
    with pytest.raises(CapabilityError, match=r"lora_dropout .* a MambaMixer reads; exclude_modules=\['dt_proj'\] le"):
        get_peft_model(mamba(), LoraConfig(target_modules=["dt_proj"], lora_dropout=0.1))
    for bias in ("all", "lora_only"):
        with pytest.raises(CapabilityError, match=rf"bias='{bias}': 'layers.0.mixer.\w+' is never called: the block"):
            get_peft_model(mamba(), LoraConfig(target_modules=["dt_proj"], bias=bias))
