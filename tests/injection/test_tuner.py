"""Putting adapters into a model and taking them out: nothing else about the model changes."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from adapterkit.errors import CapabilityError, StateError, TargetError
from adapterkit.hotswap import hotswap_adapter
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from tests.models import batch, lora, move, net, tuned


def test_adds_one_wrapper_a_target_in_place():
    model = net()
    modules = dict(model.named_modules())
    tuner = Tuner(model)
    tuner.add("a", lora())
    tuner.add("b", lora(target_modules=["query", "classifier"]))
    assert list(tuner.layers) == [f"layers.{i}.{name}" for i in (0, 1) for name in ("query", "value")] + ["classifier"]
    for name, layer in tuner.layers.items():
        assert model.get_submodule(name) is layer
        assert layer.base_layer is modules[name]
    assert set(tuner.layers["layers.0.query"].adapters) == {"a", "b"}
    assert set(tuner.layers["layers.0.value"].adapters) == {"a"}


def test_deleting_puts_the_very_modules_back():
    model = net()
    modules, before = dict(model.named_modules()), model(batch())
    tuner = Tuner(model)
    tuner.add("a", lora(bias="all", modules_to_save=["classifier"]))
    tuner.add("b", lora(target_modules=["query"]))
    tuner.activate(("a", "b"))
    tuner.delete("a")
    assert tuner.selection.active == ("b",)
    assert set(tuner.layers) == {"layers.0.query", "layers.1.query"}
    tuner.delete("b")
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(batch()), before)


def test_what_is_inside_a_module_can_be_adapted_once_no_copy_of_it_is_left():
    tuner = Tuner(net())
    tuner.add("a", lora(target_modules=["embed"], modules_to_save=["layers.0"]))
    tuner.delete("a")
    tuner.add("b", lora(target_modules=["query"]))
    assert list(tuner.layers) == ["layers.0.query", "layers.1.query"]


def test_a_module_that_cannot_be_copied_changes_nothing():
    model = net().requires_grad_(True)
    model.classifier.lock = threading.Lock()
    before = list(model.modules())
    with pytest.raises(TypeError, match="lock"):
        get_peft_model(model, lora(modules_to_save=["classifier"]))
    assert list(model.modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    wrapped = get_peft_model(model, lora(), "a")
    with pytest.raises(TypeError, match="lock"):
        wrapped.add_adapter("b", lora(modules_to_save=["classifier"]))
    assert not any(".b." in name for name, _ in wrapped.named_parameters())
    wrapped.add_adapter("b", lora())


def test_an_adapter_may_have_the_name_of_a_containers_method():
    model = get_peft_model(net(), lora(modules_to_save=["classifier"]), "keys")
    assert "keys" in model.base_model.copies["classifier"].modules_to_save
    model.delete_adapter("keys")
    assert not model.peft_config


def test_nothing_of_a_deleted_adapter_is_kept():
    model = get_peft_model(net(), lora(target_modules=["query"]), "a")
    model.add_adapter("b", lora(target_modules=["value"]))
    model.set_requires_grad(["a", "b"], False)
    model.eval()
    with torch.no_grad():
        for _ in range(4):
            model(batch(2), adapter_names=["a", "b"])
    layers = model.base_model.layers
    assert any(layer.view.kept_rows is not None for layer in layers.values())
    deleted = [weakref.ref(tensor) for _, part in model.base_model.parts("a") for tensor in part.parameters()]
    del layers
    model.delete_adapter("a")
    gc.collect()
    assert len(deleted) == 4
    assert not any(tensor() is not None for tensor in deleted)


def test_children_of_lists_and_sequences_are_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])).requires_grad_(False)
    first = model[0]
    tuner = Tuner(model)
    tuner.add("a", LoraConfig(r=2, target_modules=["0"]))
    assert [type(m) for m in (model[0], model[1][0])] == [AdaptedLayer] * 2
    tuner.delete("a")
    assert model[0] is first


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"target_modules": ["query", "nope"]}, TargetError),
        ({"target_modules": ["query", "norm"]}, CapabilityError),
        ({"modules_to_save": ["clasifier"]}, TargetError),
        ({"rank_pattern": {"qeury": 4}}, TargetError),
        ({"alpha_pattern": {r"layers\.9\..*": 4}}, TargetError),
        ({"lora_bias": True, "target_modules": ["query", "embed"]}, CapabilityError),
        ({"init_lora_weights": "pissa", "target_modules": ["query", "embed"]}, CapabilityError),
    ],
)
def test_a_wrong_config_changes_nothing(fields, error):
    model = net()
    before = list(model.modules())
    tuner = Tuner(model)
    with pytest.raises(error):
        tuner.add("a", lora(**fields))
    assert list(model.modules()) == before
    assert not tuner.configs
    assert not tuner.layers
    tuner.add("a", lora())  # and it can be tried again
    assert len(tuner.layers) == 4


def test_a_failed_first_adapter_leaves_the_base_trainable():
    model = net()
    with pytest.raises(TargetError):
        Tuner(model).add("a", lora(target_modules=["nope"]))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a", "is there already"),
        ("x.y", "cannot contain a dot"),
        ("training", "cannot be that of an attribute of every module: 'training'"),
        ("_modules", "cannot be that of an attribute of every module: '_modules'"),
    ],
)
def test_names_are_unique_and_those_of_modules(name, message):
    with pytest.raises(StateError, match=message):
        tuned("a").add(name, lora())


def test_the_base_is_frozen_and_the_adapter_trains():
    tuner = tuned("a", modules_to_save=["classifier"])
    trained = {name for name, p in tuner.named_parameters() if p.requires_grad}
    assert all(".adapters.a." in name or ".modules_to_save.a." in name for name in trained)
    assert {p.requires_grad for p in tuner.copies["classifier"].original_module.parameters()} == {False}
    tuner.set_trainable("a", False)
    assert not [name for name, p in tuner.named_parameters() if p.requires_grad]


def test_inference_mode_makes_nothing_trainable():
    tuner = Tuner(net())
    tuner.add("a", lora(inference_mode=True, bias="all", modules_to_save=["classifier"]))
    assert not [name for name, p in tuner.named_parameters() if p.requires_grad]


def test_biases_of_a_module_saved_whole_are_its_copy_s():
    tuner = tuned("a", bias="all", modules_to_save=["classifier"])
    assert isinstance(tuner.model.classifier, CopiedLayer)
    assert "classifier" not in tuner.layers


def test_biases_inside_a_module_saved_whole_are_its_copy_s():
    model = get_peft_model(net(), lora(target_modules=["classifier"], bias="all", modules_to_save=["layers.0"]))
    with_biases = {name for name, layer in model.base_model.layers.items() if layer.uses("biases")}
    assert with_biases == {"layers.1.query", "layers.1.norm", "classifier"}


def test_modules_to_save_have_a_copy_per_adapter():
    tuner = tuned("a", "b", modules_to_save=["classifier"])
    copies = tuner.copies["classifier"].modules_to_save
    assert copies["a"] is not copies["b"]
    assert not torch.equal(copies["a"].weight, copies["b"].weight)
    for name in ("a", "b"):
        tuner.activate((name,))
        assert tuner.model.classifier.active_module() is copies[name]
        assert tuner.model.classifier.weight is copies[name].weight
    tuner.selection.enabled = False
    assert torch.equal(tuner(batch()), net()(batch()))


def test_a_module_inside_a_saved_one_is_saved_once():
    tuner = Tuner(net())
    tuner.add("a", lora(target_modules=["layers.0.query"], modules_to_save=["layers.1", "layers.1.value"]))
    assert list(tuner.copies) == ["layers.1"]
    assert not any(isinstance(m, CopiedLayer) for m in tuner.copies["layers.1"].modules_to_save["a"].modules())


def test_adapted_modules_cannot_be_saved_whole():
    with pytest.raises(CapabilityError, match=r"\['classifier'\] are adapted by another adapter"):
        tuned("a", target_modules=["classifier"]).add("b", lora(modules_to_save=["classifier"]))


def test_modules_saved_whole_cannot_be_adapted():
    tuner = tuned("a", modules_to_save=["classifier"])
    with pytest.raises(CapabilityError, match=r"'classifier' is trained whole, by modules_to_save of .*\['a'\]"):
        tuner.add("b", lora(target_modules=["classifier"]))
    tuner.add("b", lora(target_modules="all-linear"))
    assert "classifier" not in tuner.adapted_by("b")


def test_activation_changes_the_output_and_nothing_else():
    tuner, x = tuned("a", "b"), batch()
    flags = [p.requires_grad for p in tuner.parameters()]
    outputs = {}
    for names in (("a",), ("b",), ("a", "b"), ()):
        tuner.activate(names)
        outputs[names] = tuner(x)
    assert torch.equal(outputs[()], net()(x))
    assert len({tuple(y.flatten().tolist()) for y in outputs.values()}) == 4
    assert [p.requires_grad for p in tuner.parameters()] == flags


def test_unknown_names_are_refused_with_the_known_ones():
    tuner = tuned("french", "german")
    for call in (tuner.delete, lambda n: tuner.activate((n,)), lambda n: tuner.merge((n,))):
        with pytest.raises(
            StateError, match=r"no adapter named 'frensh'; did you mean 'french'\? Adapters: french, german"
        ):
            call("frensh")


def test_the_config_handed_in_is_not_kept_or_changed():
    config = lora(target_modules=["query"])
    before = config.model_copy(deep=True)
    model = get_peft_model(net(), config)
    assert config == before
    config.r = 5
    config.target_modules.append("value")
    assert model.peft_config["default"].r == 2
    assert model.peft_config["default"].target_modules == ["query"]


@pytest.mark.parametrize(
    ("stated", "written"),
    [
        ("all-linear", ["classifier", "query", "value"]),
        (r"layers\.0\..*(query|value)", ["layers.0.query", "layers.0.value"]),
        (["0.query", "value"], ["layers.0.query", "value"]),
    ],
)
def test_the_config_kept_names_what_matched(stated, written):
    assert tuned("a", target_modules=stated).configs["a"].target_modules == written


def test_patterns_reach_the_modules_they_name():
    tuner = tuned("a", rank_pattern={"0.query": 4, r".*value": 6}, alpha_pattern={"layers.1.query": 12})
    ranks = {name: layer.adapters["a"].lora_A.weight.shape[0] for name, layer in tuner.layers.items()}
    assert list(ranks.values()) == [4, 6, 2, 6]
    assert tuner.layers["layers.1.query"].adapters["a"].scaling == 6


def test_injected_adapters_are_found_again():
    model = inject_adapter_in_model(lora(), net(), "a")
    inject_adapter_in_model(lora(target_modules=["query"]), model, "b")
    layer = model.layers[0].query
    assert set(layer.adapters) == {"a", "b"}
    assert layer.selection is model.layers[1].value.selection
    assert layer.selection.active == ("b",)  # as in PEFT: the last one alone
    assert not isinstance(layer.base_layer, AdaptedLayer)


def test_injected_adapters_have_no_config_to_save(tmp_path):
    model = get_peft_model(inject_adapter_in_model(lora(), net(), "a"), lora(), "b")
    get_peft_model(net(), lora()).save_pretrained(tmp_path / "given")
    message = r"\['a'\] were in the model before it was wrapped, .*, which {} needs\. Adapters with a config: b"
    with pytest.raises(StateError, match=message.format("save_pretrained")):
        model.save_pretrained(tmp_path / "written", selected_adapters=["b", "a"])
    assert not (tmp_path / "written").exists()
    with pytest.raises(StateError, match=message.format("hotswap_adapter")):
        hotswap_adapter(model, tmp_path / "given", "a")
    model.set_adapter("a")
    with pytest.raises(StateError, match=message.format("active_peft_config")):
        _ = model.active_peft_config


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(("half", "expected"), [(True, torch.float32), (False, torch.bfloat16)])
def test_types_of_adapters_on_a_half_base(half, expected, meta):
    tuner = Tuner(net().to(torch.bfloat16))
    tuner.add("a", lora(modules_to_save=["classifier"]), autocast_adapter_dtype=half, low_cpu_mem_usage=meta)
    assert {p.dtype for _, part in tuner.parts("a") if not isinstance(part, nn.Linear) for p in part.parameters()} == {
        expected
    }


def test_training_mode_is_the_replaced_module_s():
    model = net().train()
    tuner = Tuner(model)
    tuner.add("a", lora(modules_to_save=["classifier"]))
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in tuned("a").modules() if m is not None and isinstance(m, AdaptedLayer))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("first", [{}, {"target_modules": ["1.query"], "modules_to_save": ["0.norm"]}], ids=str)
def test_a_copy_of_a_module_has_none_of_the_adapters_inside(tmp_path, first, merged):
    model = get_peft_model(net(), lora(**first), "one")
    move(model)
    before = model.eval()(batch())
    if merged:
        model.merge_adapter()
    model.add_adapter("two", lora(target_modules=["1.value"], modules_to_save=["layers.0"]))
    plain = net().layers[0].state_dict()
    saved = get_peft_model_state_dict(model, adapter_name="two")
    copied = {k.removeprefix("base_model.model.layers.0."): t for k, t in saved.items() if ".layers.0." in k}
    assert copied.keys() == plain.keys()
    assert all(torch.equal(copied[key], plain[key]) for key in plain)
    torch.testing.assert_close(model(batch()), before)
    if merged:
        model.unmerge_adapter()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(net(), tmp_path / "two", "two")
    model.set_adapter("two")
    torch.testing.assert_close(again(batch()), model(batch()))
    torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path / "one", "one")(batch()), before)
    torch.testing.assert_close(model.unload()(batch()), net()(batch()))
