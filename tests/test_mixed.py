"""Mixed models: several methods on one layer, several adapters active, saved and loaded as one."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import adapterkit
from adapterkit import PeftMixedModel, PeftModel, get_peft_model
from adapterkit.errors import CapabilityError, CheckpointError, StateError
from adapterkit.registry import methods
from tests.parity.bases import IDS, fill, llama
from tests.parity.helpers import add_noise, peft, quiet

CANDIDATES = {
    "lora": {"r": 2},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "oft": {"oft_block_size": 4},
    "hra": {"r": 2},
    "ia3": {"feedforward_modules": ["b"]},
    "vera": {"r": 4},
    "fourierft": {"n_frequency": 10},
}
KINDS = [name for name in CANDIDATES if name in methods]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.classifier = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.b(torch.tanh(self.a(x))))


def net():
    torch.manual_seed(0)
    return Net().eval()


def config(kind, **fields):
    return methods[kind](target_modules=["a", "b"], **CANDIDATES[kind], **fields)


def mix(kinds=tuple(KINDS), **fields):
    mixed = None
    for kind in kinds:
        if mixed is None:
            mixed = get_peft_model(net(), config(kind, **fields), kind, mixed=True)
        else:
            mixed.add_adapter(kind, config(kind, **fields))
    mixed.set_adapter(list(kinds))
    add_noise(mixed)
    return mixed.eval()


X = torch.linspace(-1, 1, 40).reshape(5, 8)


def test_get_peft_model_gives_a_mixed_model():
    mixed = mix(("lora",))
    assert type(mixed) is PeftMixedModel
    assert isinstance(mixed, PeftModel)
    assert mixed.active_adapter == "lora"


@pytest.mark.parametrize("other", [k for k in KINDS if k != "lora"])
def test_a_mix_is_saved_and_loaded(tmp_path, other):
    mixed = mix(("lora", other), modules_to_save=["classifier"])
    mixed.save_pretrained(tmp_path)
    again = PeftMixedModel.from_pretrained(net(), tmp_path)
    assert again.active_adapters == ["lora", other]
    assert not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again(X), mixed(X))
    with quiet():  # each directory is one that PEFT reads
        theirs = peft.PeftModel.from_pretrained(net(), tmp_path / other).eval()
    mixed.set_adapter(other)
    torch.testing.assert_close(theirs(X), mixed(X))


def test_the_active_adapters_are_restored(tmp_path):
    mixed = mix(("lora", KINDS[1]))
    mixed.set_adapter(KINDS[1])
    mixed.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "mixed_adapters.json").read_text()) == {
        "adapters": ["lora", KINDS[1]],
        "active_adapters": [KINDS[1]],
    }
    again = PeftMixedModel.from_pretrained(net(), tmp_path, is_trainable=True)
    assert again.active_adapters == [KINDS[1]]
    assert torch.equal(again.eval()(X), mixed(X))


def test_selected_adapters_only(tmp_path):
    mixed = mix(("lora", KINDS[1]))
    mixed.save_pretrained(tmp_path, selected_adapters=["lora"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "lora", "mixed_adapters.json"]
    assert list(PeftMixedModel.from_pretrained(net(), tmp_path).peft_config) == ["lora"]


def test_other_processes_write_nothing(tmp_path):
    mix(("lora",)).save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


def test_one_saved_adapter_starts_a_mix(tmp_path):
    get_peft_model(net(), config("lora")).save_pretrained(tmp_path)
    mixed = PeftMixedModel.from_pretrained(net(), tmp_path, "first")
    mixed.add_adapter("second", config(KINDS[1]))
    assert list(mixed.peft_config) == ["first", "second"]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"adapters": ["x"]}',
        '{"adapters": ["x"], "active_adapters": ["y"]}',
        '{"adapters": [], "active_adapters": []}',
        "{",
    ],
)
def test_a_broken_index_is_named(tmp_path, content):
    (tmp_path / "mixed_adapters.json").write_text(content)
    with pytest.raises(CheckpointError, match="mixed_adapters"):
        PeftMixedModel.from_pretrained(net(), tmp_path)


def test_a_mix_that_cannot_be_read_leaves_the_base_alone(tmp_path):
    mix(("lora", KINDS[1])).save_pretrained(tmp_path)
    (tmp_path / KINDS[1] / "adapter_model.safetensors").write_bytes(b"short")
    model = net()
    with pytest.raises(CheckpointError, match="cannot be read"):
        PeftMixedModel.from_pretrained(model, tmp_path)
    assert list(model.state_dict()) == list(net().state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("is_trainable", [False, True])
def test_an_adapter_that_is_given_a_file_trains_on_as_it_did(tmp_path, mixed, is_trainable):
    def trained(model, name):
        return {p.requires_grad for _, part in model.base_model.parts(name) for p in part.parameters()}

    get_peft_model(net(), config("lora")).save_pretrained(tmp_path)
    cls = PeftMixedModel if mixed else PeftModel
    model = cls.from_pretrained(net(), tmp_path)
    assert trained(model, "default") == {False}
    model.load_adapter(tmp_path, "default", is_trainable=is_trainable)
    assert trained(model, "default") == {False}
    model.set_adapter("default")
    model.load_adapter(tmp_path, "default", is_trainable=is_trainable)
    assert trained(model, "default") == {True}
    model.add_adapter("second", config("lora"))
    model.load_adapter(tmp_path, "second", is_trainable=is_trainable)
    assert trained(model, "second") == {False}
    assert trained(model, "default") == {True}


def test_merging_a_mix_is_the_mix():
    mixed = mix()
    expected = mixed(X)
    merged = mixed.merge_and_unload(progressbar=False, safe_merge=True)
    assert type(merged) is Net
    torch.testing.assert_close(merged(X), expected)


def test_merging_some_of_a_mix():
    mixed = mix()
    one = copy.deepcopy(mixed)
    one.set_adapter("lora")
    torch.testing.assert_close(mixed.merge_and_unload(adapter_names=["lora"])(X), one(X))


def test_unload_and_disable_give_the_base():
    mixed = mix()
    with mixed.disable_adapter():
        assert torch.equal(mixed(X), net()(X))
    assert torch.equal(mixed.unload()(X), net()(X))


def test_each_row_its_own_adapters_method():
    mixed = mix()
    names = [*KINDS, "__base__"]
    x = torch.linspace(-1, 1, 8 * len(names)).reshape(len(names), 8)
    routed = mixed(x, adapter_names=names)
    for row, name in enumerate(names[:-1]):
        mixed.set_adapter(name)
        torch.testing.assert_close(routed[row], mixed(x)[row])
    torch.testing.assert_close(routed[-1], net()(x)[-1])
    with pytest.raises(StateError, match=r"no adapter named 'lara'; did you mean 'lora'\?"):
        mixed(x, adapter_names=["lara"] * len(names))
    with pytest.raises(StateError, match="1 names for a batch of"):
        mixed(x, adapter_names=["lora"])


def test_order_is_the_order_of_adding():
    mixed = mix(("lora", KINDS[1]))
    expected = mixed(X)
    mixed.set_adapter([KINDS[1], "lora"])
    assert mixed.active_adapters == ["lora", KINDS[1]]
    assert torch.equal(mixed(X), expected)


def test_several_active_adapters_have_no_one_config():
    mixed = mix(("lora", KINDS[1]))
    with pytest.raises(StateError, match=r"2 adapters are active: \['lora', 'loha'\]; see active_adapters"):
        _ = mixed.active_peft_config


def test_deleting_several_is_all_or_nothing():
    mixed = mix(("lora", KINDS[1]))
    with pytest.raises(StateError, match="no adapter named 'nope'"):
        mixed.delete_adapter(["lora", "nope"])
    assert list(mixed.peft_config) == ["lora", KINDS[1]]
    mixed.delete_adapter(["lora", KINDS[1]])
    assert torch.equal(mixed(X), net()(X))


def test_prompts_are_refused():
    prompt = adapterkit.PrefixTuningConfig(num_virtual_tokens=2)
    with pytest.raises(CapabilityError, match="PREFIX_TUNING"):
        get_peft_model(net(), prompt, mixed=True)


@pytest.mark.parametrize("other", [k for k in ("loha", "lokr", "oft") if k in KINDS])
def test_numbers_are_those_of_pefts_mix(tmp_path, other):
    classes = {"loha": "LoHaConfig", "lokr": "LoKrConfig", "oft": "OFTConfig"}
    with quiet():
        theirs = peft.get_peft_model(net(), peft.LoraConfig(target_modules=["a", "b"], r=2), "lora", mixed=True)
        their_config = getattr(peft, classes[other])(target_modules=["a", "b"], **CANDIDATES[other])
        theirs.add_adapter(other, their_config)
        theirs.set_adapter(["lora", other])
    add_noise(theirs)
    mixed = PeftMixedModel(net(), config("lora"), "lora")
    mixed.add_adapter(other, config(other))
    mixed.set_adapter(["lora", other])
    for name in ("lora", other):
        adapterkit.set_peft_model_state_dict(mixed, peft.get_peft_model_state_dict(theirs, adapter_name=name), name)
    torch.testing.assert_close(mixed.eval()(X), theirs.eval()(X))


@pytest.mark.parametrize("order", [("around", "inside"), ("inside", "around")])
def test_adapters_of_a_block_and_of_layers_inside_of_it(order):
    task = {"task_type": "CAUSAL_LM"}
    configs = {
        "around": adapterkit.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, **task),
        "inside": adapterkit.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **task),
    }
    model = get_peft_model(llama(), configs[order[0]], order[0], mixed=True)
    model.add_adapter(order[1], configs[order[1]])
    for name in order:
        fill(adapterkit, model, name)
    alone = get_peft_model(llama(), configs["inside"], "inside")
    fill(adapterkit, alone, "inside")
    model.eval().set_adapter("inside")
    torch.testing.assert_close(model(input_ids=IDS).logits, alone.eval()(input_ids=IDS).logits)
    torch.testing.assert_close(model.unload()(input_ids=IDS).logits, llama()(input_ids=IDS).logits)


def test_a_head_that_the_task_alone_would_train_is_told_of(tmp_path):
    config = adapterkit.LoraConfig(r=2, target_modules=["a"], task_type="SEQ_CLS")
    with pytest.warns(UserWarning, match="PeftMixedModel does not train its output layer 'classifier' by itself"):
        get_peft_model(Net(), config, mixed=True)
    base, config = Net(), config.model_copy(update={"modules_to_save": ["classifier"]})
    get_peft_model(copy.deepcopy(base), config, mixed=True).save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(base, tmp_path / "default").modules_to_save == {"classifier"}
