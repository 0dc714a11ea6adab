"""Adapted models made from a config, or from files."""

from __future__ import annotations

import json
from typing import ClassVar, Literal

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from adapterkit import LoraConfig, PeftModel, get_peft_config, get_peft_model, inject_adapter_in_model
from adapterkit.config.layer import LayerConfig
from adapterkit.errors import BrokenPluginError, CapabilityError, ConfigError, TargetError
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.registry import tasks
from adapterkit.tasks.seq_cls.config import SeqClsConfig
from tests.models import batch, lora, move, net, pair, trainable


def bert(**fields) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
        **fields,
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


class PlainTensor(LayerAdapter):
    """A third party's, that holds a tensor where it needs a parameter."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.scale = torch.ones(layer.out_features, requires_grad=True)

    def adapt_output(self, y, x):
        return y * self.scale.to(y.dtype)


class Somewhere(PlainTensor):
    """A third party's, whose parameters are at some layers only: those with a bias."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if layer.bias is not None:
            self.scale = torch.nn.Parameter(self.scale)


class PlainTensorConfig(LayerConfig):
    """A third party's config."""

    adapter: ClassVar[str] = "tests.injection.test_making:PlainTensor"
    peft_type: Literal["PLAIN"] = "PLAIN"


class SomewhereConfig(PlainTensorConfig):
    """Another one."""

    adapter: ClassVar[str] = "tests.injection.test_making:Somewhere"


class OpenRating(PeftModel):
    """A third party's task, whose head is named and no more."""

    task_type = "RATING"
    heads = ("classifier",)


class OneHead(OpenRating):
    """The same, with a string where a tuple is needed."""

    heads = "classifier"


class Rating(OpenRating):
    """The same, with a head that is left alone."""

    unadapted_heads = ("classifier",)


def task_of(named: str) -> type[SeqClsConfig]:
    """A third party's config of a task whose wrapper is something in this module."""

    class Config(SeqClsConfig):
        task_type: ClassVar[str] = "RATING"
        wrapper: ClassVar[str] = f"tests.injection.test_making:{named}"

    return Config


class TestMaking:
    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_a_method_without_parameters_is_refused(self, low_cpu_mem_usage):
        base = net()
        message = (
            r"test_making:PlainTensorConfig: its adapter .*test_making:PlainTensor has no nn\.Parameter at any of its "
            r"4 targets, such as 'layers\.0\.query'"
        )
        with pytest.raises(BrokenPluginError, match=message):
            get_peft_model(
                base, PlainTensorConfig(target_modules=["query", "value"]), low_cpu_mem_usage=low_cpu_mem_usage
            )
        assert isinstance(base.layers[0].query, torch.nn.Linear)

    def test_a_method_may_have_parameters_at_some_layers_only(self):
        model = get_peft_model(net(), SomewhereConfig(target_modules=["query", "value"]))
        assert model.get_nb_trainable_parameters()[0] == 2 * 8

    def test_parameters_are_counted(self, capsys):
        model = get_peft_model(net(), lora())
        expected = 4 * 2 * (8 + 8)  # four targets, rank 2
        assert model.get_nb_trainable_parameters() == (expected, expected + sum(p.numel() for p in net().parameters()))
        model.print_trainable_parameters()
        assert capsys.readouterr().out == "trainable params: 128 || all params: 539 || trainable%: 23.7477\n"

    def test_the_base_is_the_model_itself(self):
        base = net()
        model = get_peft_model(base, lora())
        assert model.get_base_model() is base
        assert isinstance(model.base_model, Tuner)
        assert model.base_model.model is base

    def test_the_start_is_the_same_whatever_the_default_device(self):
        usual, base = get_peft_model(net(), lora()), net()
        with torch.device("meta"):
            model = get_peft_model(base, lora())
        starts = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in (usual, model)]
        for name, start in starts[0].items():
            assert torch.equal(starts[1][name], start)

    def test_names_fall_through_to_the_base(self):
        model = pair()
        assert model.embed is model.get_base_model().embed
        with pytest.raises(AttributeError, match="no_such_thing"):
            model.no_such_thing

    @pytest.mark.parametrize("task", sorted(tasks))
    def test_a_task_type_chooses_the_wrapper(self, task):
        wrapper = tasks[task].wrapper_class()
        assert issubclass(wrapper, PeftModel)
        assert wrapper.task_type == tasks[task].task_type

    @pytest.mark.parametrize(("wrapper", "adapted"), [("Rating", False), ("OpenRating", True)])
    def test_a_task_says_whether_all_linear_leaves_its_head_alone(self, wrapper, adapted, monkeypatch):
        monkeypatch.setitem(tasks._local, "rating", task_of(wrapper))
        config = LoraConfig(r=2, target_modules="all-linear", task_type="RATING")
        model = inject_adapter_in_model(config, bert())
        assert isinstance(model.classifier, AdaptedLayer) is adapted
        assert isinstance(model.bert.encoder.layer[0].attention.self.query, AdaptedLayer)

    @pytest.mark.parametrize("make", [get_peft_model, lambda base, config: inject_adapter_in_model(config, base)])
    @pytest.mark.parametrize(
        ("wrapper", "why"),
        [
            ("NoSuchThing", "has no 'NoSuchThing'"),
            ("net", "is no PeftModel"),
            ("OneHead", "has heads='classifier': a tuple of names"),
        ],
    )
    def test_a_task_s_broken_wrapper_is_named(self, wrapper, why, make, monkeypatch):
        monkeypatch.setitem(tasks._local, "rating", task_of(wrapper))
        with pytest.raises(BrokenPluginError, match=rf"Config: its wrapper .*test_making:{wrapper} .*{why}"):
            make(bert(), LoraConfig(r=2, target_modules="all-linear", task_type="RATING"))

    def test_a_task_s_head_is_trained_and_saved(self, tmp_path):
        model = get_peft_model(bert(), LoraConfig(r=2, task_type="SEQ_CLS"))
        assert type(model).__name__ == "PeftModelForSequenceClassification"
        assert model.peft_config["default"].modules_to_save == ["classifier"]
        assert model.peft_config["default"].target_modules == ["query", "value"]
        move(model)
        model.eval().save_pretrained(tmp_path)
        inputs = {"input_ids": torch.tensor([[2, 3, 4]]), "labels": torch.tensor([1])}
        loaded = PeftModel.from_pretrained(bert(), tmp_path)
        assert type(loaded) is type(model)
        ours, theirs = loaded(**inputs), model(**inputs)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.loss, theirs.loss)

    def test_a_wrong_target_leaves_the_base_as_it_was(self):
        base = net()
        modules, flags = dict(base.named_modules()), [p.requires_grad for p in base.parameters()]
        with pytest.raises(TargetError):
            get_peft_model(base, lora(target_modules=["qeury"]))
        assert dict(base.named_modules()) == modules
        assert [p.requires_grad for p in base.parameters()] == flags

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"peft_type": "LORRA"}, ConfigError, "no method named 'lorra'; did you mean 'lora'"),
            ({"peft_type": "LORA", "rank": 8}, ConfigError, "does not know rank=8; did you mean 'rank_pattern'"),
            ({"r": 8}, ConfigError, "peft_type is missing. Installed: .*LORA"),
            ({"peft_type": "LORA", "r": "8"}, ConfigError, r"r: .*\(got '8'\)"),
        ],
    )
    def test_configs_from_dicts(self, given, error, message):
        with pytest.raises(error, match=message):
            get_peft_config(given)
        assert get_peft_config({"peft_type": "LORA", "r": 4}) == LoraConfig(r=4)

    def test_prompts_cannot_be_injected(self):
        config = get_peft_config({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3})
        with pytest.raises(CapabilityError, match="use get_peft_model"):
            inject_adapter_in_model(config, net())

    def test_a_model_of_a_half_type_trains_in_float32(self):
        model = get_peft_model(net().to(torch.bfloat16), lora())
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert model(batch()).dtype == torch.bfloat16


class TestLoading:
    def test_beside_others(self, tmp_path):
        model, x = pair(), batch()
        model.save_pretrained(tmp_path)
        model.set_adapter("two")
        expected = model(x)
        fresh = PeftModel.from_pretrained(net(), tmp_path / "one", "one")
        before = fresh(x)
        assert fresh.load_adapter(tmp_path / "two", "two") == ([], [])
        assert fresh.active_adapters == ["one"]
        assert torch.equal(fresh(x), before)
        fresh.set_adapter("two")
        assert torch.equal(fresh(x), expected)

    @pytest.mark.parametrize("is_trainable", [False, True])
    def test_trainable_or_not(self, tmp_path, is_trainable):
        pair().save_pretrained(tmp_path, selected_adapters=["one"])
        loaded = PeftModel.from_pretrained(net(), tmp_path / "one", is_trainable=is_trainable)
        assert bool(trainable(loaded)) is is_trainable
        assert loaded.training is is_trainable

    def test_training_can_be_resumed(self, tmp_path):
        model, x = pair(), batch()
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(net(), tmp_path / "one", "one", is_trainable=True)
        outputs = []
        for each in (model, loaded):
            optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1)
            each.train()(x).pow(2).sum().backward()
            optimizer.step()
            outputs.append(each.eval()(x))
        assert torch.equal(*outputs)

    def test_a_config_can_be_given(self, tmp_path):
        pair().save_pretrained(tmp_path, selected_adapters=["one"])
        loaded = PeftModel.from_pretrained(net(), tmp_path / "one", config=lora(lora_alpha=16))
        assert loaded.peft_config["default"].lora_alpha == 16

    def test_a_card_is_written(self, tmp_path):
        base = bert()
        base.config.name_or_path = "org/tiny"
        model = get_peft_model(base, LoraConfig(r=2, task_type="SEQ_CLS"))
        model.save_pretrained(tmp_path)
        card = tmp_path / "README.md"
        assert card.read_text().startswith("---\n")
        assert "base_model: org/tiny" in card.read_text()
        assert "library_name: peft" in card.read_text()
        card.write_text(card.read_text() + "\nMy own words.\n")
        model.save_pretrained(tmp_path)
        assert "My own words." in card.read_text()
        assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
