"""Hot-swapping: the same name, another adapter, nothing else changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, PeftModel, get_peft_model, hotswap_adapter, prepare_model_for_compiled_hotswap
from adapterkit.errors import CapabilityError, CheckpointError, StateError
from adapterkit.registry import methods
from tests.parity.helpers import add_noise, peft, quiet

X = torch.linspace(-1, 1, 24).reshape(3, 8)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)).eval()


def saved(path, scale=0.2, **fields):
    model = get_peft_model(net(), LoraConfig(**{"r": 2, "target_modules": ["0", "2"], **fields}))
    add_noise(model, scale)
    model.eval().save_pretrained(path)
    return model(X).detach()


@pytest.mark.parametrize(
    "fields",
    [{}, {"lora_alpha": 4}, {"r": 4}, {"target_modules": ["0"]}, {"target_modules": ["0", "2", "3"]},
     {"bias": "lora_only"}, {"modules_to_save": ["3"]}, {"use_dora": True}],
    ids=str,
)  # fmt: skip
def test_the_model_becomes_the_other_adapters(tmp_path, fields):
    saved(tmp_path / "a")
    expected = saved(tmp_path / "b", 0.7, **fields)
    model = PeftModel.from_pretrained(net(), tmp_path / "a")
    model.load_adapter(tmp_path / "a", "bystander", is_trainable=True)
    hotswap_adapter(model, tmp_path / "b", "default")
    assert torch.equal(model(X), expected)
    assert model.active_adapters == ["default"]
    assert model.get_model_status().requires_grad == {"bystander": True, "default": False}
    model.save_pretrained(tmp_path / "c", selected_adapters=["default"])
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path / "c")(X), expected)


def test_a_compiled_model_is_not_compiled_again(tmp_path):
    saved(tmp_path / "a")
    expected = saved(tmp_path / "b", 0.7)
    model = PeftModel.from_pretrained(net(), tmp_path / "a")
    compilations = []
    compiled = torch.compile(model, backend=lambda graph, _: compilations.append(graph) or graph.forward)
    with torch.no_grad():
        compiled(X)
        before = len(compilations)
        hotswap_adapter(compiled, tmp_path / "b", "default")
        torch.testing.assert_close(compiled(X), expected)
    assert before > 0
    assert len(compilations) == before


def prepared(path, **fields):
    model = PeftModel.from_pretrained(net(), path)
    before = model(X)
    prepare_model_for_compiled_hotswap(model, **fields)
    torch.testing.assert_close(model(X), before)
    return model


OTHERS = [{}, {"r": 4}, {"r": 6, "lora_alpha": 1}, {"r": 4, "use_rslora": True}, {"r": 1, "lora_alpha": 32}]


def test_another_rank_and_scale_are_not_compiled_again(tmp_path):
    saved(tmp_path / "first")
    model, compilations = prepared(tmp_path / "first", target_rank=6), []
    compiled = torch.compile(model, backend=lambda graph, _: compilations.append(graph) or graph.forward)
    with torch.no_grad():
        compiled(X)
        before = len(compilations)
        for number, fields in enumerate(OTHERS):
            expected = saved(tmp_path / str(number), 0.3 + number / 10, **fields)
            hotswap_adapter(compiled, tmp_path / str(number), "default")
            torch.testing.assert_close(compiled(X), expected)
            model.save_pretrained(tmp_path / "again")
            torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path / "again")(X), expected)
    assert before > 0
    assert len(compilations) == before


@pytest.mark.parametrize(
    "fields", [{"use_dora": True}, {"lora_bias": True}, {"rank_pattern": {"2": 5}, "alpha_pattern": {"0": 3}}], ids=str
)
def test_preparing_changes_nothing_that_is_computed(tmp_path, fields):
    expected = saved(tmp_path / "a", **fields)
    model = prepared(tmp_path / "a", target_rank=5)
    assert model.peft_config["default"].r == model.peft_config["default"].lora_alpha == 5
    model.save_pretrained(tmp_path / "b")
    torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path / "b")(X), expected)
    with quiet():
        theirs = peft.PeftModel.from_pretrained(net(), tmp_path / "b").eval()
    torch.testing.assert_close(theirs(X), expected)


def test_preparing_is_refused_where_it_does_not_help(tmp_path):
    expected = saved(tmp_path / "a", r=4)
    saved(tmp_path / "b", r=9)
    model = prepared(tmp_path / "a")
    with pytest.raises(CapabilityError, match="rank 9 is above 4"):
        hotswap_adapter(model, tmp_path / "b", "default")
    with pytest.raises(CapabilityError, match="rank 4 is above 2"):
        prepare_model_for_compiled_hotswap(model, target_rank=2)
    torch.testing.assert_close(model(X), expected)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(StateError, match="compiled already"):
        prepare_model_for_compiled_hotswap(compiled)
    with pytest.warns(UserWarning, match="compiled already"):
        prepare_model_for_compiled_hotswap(compiled, check_compiled="warn")
    prepare_model_for_compiled_hotswap(compiled, check_compiled="ignore")
    with pytest.raises(StateError, match="has no adapter"):
        prepare_model_for_compiled_hotswap(net())
    other = get_peft_model(net(), methods["ia3"](target_modules=["0"], feedforward_modules=[]))
    with pytest.raises(CapabilityError, match="IA3 adapters have no rank"):
        prepare_model_for_compiled_hotswap(other)


def test_configs_that_are_given_get_the_rank(tmp_path):
    saved(tmp_path / "a")
    configs = {"one": LoraConfig(r=2), "two": LoraConfig(r=3)}
    prepared(tmp_path / "a", target_rank=6, config=configs)
    assert [config.r for config in configs.values()] == [6, 6]


def test_what_does_not_fit_changes_nothing(tmp_path):
    expected = saved(tmp_path / "a")
    saved(tmp_path / "b")
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(
        (tmp_path / "b" / "adapter_model.safetensors").read_bytes()[:-8]
    )
    model = PeftModel.from_pretrained(net(), tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot be read"):
        hotswap_adapter(model, tmp_path / "b", "default")
    with pytest.raises(StateError, match="no adapter named 'defult'"):
        hotswap_adapter(model, tmp_path / "a", "defult")
    assert torch.equal(model(X), expected)
    assert list(model.peft_config) == ["default"]


def test_another_method_is_refused(tmp_path):
    saved(tmp_path / "a")
    get_peft_model(net(), methods["ia3"](target_modules=["0"], feedforward_modules=[])).save_pretrained(tmp_path / "b")
    model = PeftModel.from_pretrained(net(), tmp_path / "a")
    with pytest.raises(TypeError, match="a IA3 adapter cannot be put in the place of a LORA one"):
        hotswap_adapter(model, tmp_path / "b", "default")


def test_a_merged_adapter_is_not_replaced(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b", 0.7)
    model = PeftModel.from_pretrained(net(), tmp_path / "a")
    before = model(X)
    model.merge_adapter()
    merged = model(X)
    with pytest.raises(StateError, match="'default' is merged: unmerge it before putting another in its place"):
        hotswap_adapter(model, tmp_path / "b", "default")
    assert torch.equal(model(X), merged)
    model.unmerge_adapter()
    assert torch.equal(model(X), before)


def test_one_that_awaits_data_awaits_none_afterwards(tmp_path):
    expected = saved(tmp_path / "b")
    model = get_peft_model(net(), LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights="eva")).eval()
    hotswap_adapter(model, tmp_path / "b", "default")
    assert torch.equal(model(X), expected)
