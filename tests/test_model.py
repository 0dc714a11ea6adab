"""The public surface of an adapted model: what is loaded, active, trainable and merged are four facts."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from adapterkit import LoraConfig, PeftModel, get_peft_config, get_peft_model, inject_adapter_in_model
from adapterkit.errors import CapabilityError, ConfigError, StateError, TargetError
from adapterkit.registry import resolve, tasks
from adapterkit.tuner import Tuner
from tests.models import batch, move, net


def lora(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["query", "value"], **fields})


def pair() -> PeftModel:
    """Two adapters that differ; the first one is active."""
    model = get_peft_model(net(), lora(), "one")
    model.add_adapter("two", lora(r=3))
    model.set_requires_grad(["one", "two"])
    move(model)
    model.set_requires_grad("two", False)
    return model.eval()


def trainable(model: PeftModel) -> set[str]:
    """The names of the adapters that receive gradients."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {found.group(1) for name in names if (found := re.search(r"\.adapters\.(\w+)\.", name))}


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


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


class TestStates:
    def test_a_new_adapter_is_neither_active_nor_trained(self):
        model = get_peft_model(net(), lora(), "one")
        model.add_adapter("two", lora())
        assert (model.active_adapter, trainable(model)) == ("one", {"one"})

    def test_setting_one_freezes_the_last(self):
        model = pair()
        model.set_adapter("two")
        assert (model.active_adapters, trainable(model)) == (["two"], {"two"})
        model.set_adapter("one", inference_mode=True)
        assert (model.active_adapters, trainable(model)) == (["one"], set())

    def test_training_does_not_follow_from_activity(self):
        model = pair()
        model.set_requires_grad("two")
        assert (model.active_adapters, trainable(model)) == (["one"], {"one", "two"})
        model.set_requires_grad(["one", "two"], False)
        assert (model.active_adapters, trainable(model)) == (["one"], set())

    def test_disabling_changes_the_output_only(self):
        model, x = pair(), batch()
        with model.disable_adapter():
            assert torch.equal(model(x), net()(x))
            with model.disable_adapter():
                pass
            assert torch.equal(model(x), net()(x))
            assert (model.active_adapters, trainable(model)) == (["one"], {"one"})
        assert not torch.equal(model(x), net()(x))

    def test_disabling_ends_with_an_error_in_the_block(self):
        model, x = pair(), batch()
        before = model(x)
        with pytest.raises(RuntimeError, match="inside"), model.disable_adapter():
            raise RuntimeError("inside")
        assert torch.equal(model(x), before)

    def test_deleting_the_active_adapter_leaves_none(self):
        model, x = pair(), batch()
        model.delete_adapter("one")
        assert model.active_adapters == []
        assert torch.equal(model(x), net()(x))
        with pytest.raises(StateError, match="0 adapters are active"):
            model.active_adapter
        model.set_adapter("two")
        model.delete_adapter("two")
        assert torch.equal(model(x), net()(x))

    @pytest.mark.parametrize(
        "call",
        [
            lambda m: m.set_adapter("tow"),
            lambda m: m.delete_adapter("tow"),
            lambda m: m.set_requires_grad("tow"),
            lambda m: m.merge_adapter(["tow"]),
            lambda m: m.merge_and_unload(adapter_names=["tow"]),
            lambda m: m(batch(), adapter_names=["one", "tow", "one", "two"]),
        ],
    )
    def test_unknown_names_are_errors_that_change_nothing(self, call):
        model, x = pair(), batch()
        before = model(x)
        with pytest.raises(StateError, match=r"no adapter named 'tow'; did you mean 'two'\? Adapters: one, two"):
            call(model)
        assert torch.equal(model(x), before)
        assert (model.active_adapters, trainable(model)) == (["one"], {"one"})

    def test_another_method_needs_a_mixed_model(self):
        class Other(LoraConfig):
            peft_type: str = "OTHER"

        with pytest.raises(StateError, match=r"has LORA adapters and cannot take a OTHER one; .*mixed=True"):
            pair().add_adapter("three", Other(r=2, target_modules=["query"]))

    def test_two_models_do_not_share_a_config(self):
        config = lora()
        one, two = get_peft_model(net(), config), get_peft_model(net(), config)
        assert one.peft_config["default"] is not two.peft_config["default"]
        assert one.peft_config["default"] is not config


class TestMerging:
    def test_reversible(self):
        model, x = pair(), batch()
        before = model(x)
        model.merge_adapter()
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)
        with pytest.raises(StateError, match="merged"):
            model.set_adapter("two")
        model.unmerge_adapter()
        assert torch.equal(model(x), before)

    def test_one_that_is_not_active(self):
        model, x = pair(), batch()
        model.set_adapter("two")
        expected = model(x)
        model.set_adapter("one")
        torch.testing.assert_close(model.merge_and_unload(adapter_names=["two"])(x), expected, atol=1e-5, rtol=1e-4)

    def test_training_is_possible_after_unmerging(self):
        model, x = pair(), batch()
        model.merge_adapter()
        model.unmerge_adapter()
        model(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_a_merged_adapter_is_saved_as_it_is(self, tmp_path):
        model, x = pair(), batch()
        before = model(x)
        model.merge_adapter()
        model.save_pretrained(tmp_path, selected_adapters=["one"])
        assert torch.equal(PeftModel.from_pretrained(net(), tmp_path / "one", "one")(x), before)


class TestRows:
    @pytest.mark.parametrize("names", [["one", "two", "__base__", "one"], ["__base__"] * 4, ["two"] * 4])
    def test_each_row_its_adapter(self, names):
        model, x = pair(), batch()
        routed = model(x, adapter_names=names)
        with model.disable_adapter():
            expected = {"__base__": model(x)}
        for name in ("one", "two"):
            model.set_adapter(name)
            expected[name] = model(x)
        torch.testing.assert_close(routed, torch.stack([expected[name][row] for row, name in enumerate(names)]))

    def test_the_next_call_is_not_routed(self):
        model, x = pair(), batch()
        before = model(x)
        model(x, adapter_names=["two"] * 4)
        assert torch.equal(model(x), before)

    def test_saved_modules_are_routed_too(self):
        model = get_peft_model(net(), lora(modules_to_save=["classifier"]), "one")
        model.add_adapter("two", lora(modules_to_save=["classifier"]))
        model.set_requires_grad(["one", "two"])
        move(model)
        x = batch()
        routed = model.eval()(x, adapter_names=["one", "two", "__base__", "two"])
        model.set_adapter("two")
        torch.testing.assert_close(routed[[1, 3]], model(x)[[1, 3]])
        torch.testing.assert_close(routed[2], net()(x)[2])

    def test_a_wrong_number_is_an_error(self):
        with pytest.raises(StateError, match="3 names for a batch of 4 rows"):
            pair()(batch(), adapter_names=["one"] * 3)

    @pytest.mark.parametrize("beams", [1, 3])
    def test_generation(self, beams):
        model = get_peft_model(gpt2(), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["c_attn"]), "one")
        model.add_adapter("two", LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["c_attn"]))
        model.set_requires_grad(["one", "two"])
        move(model)
        inputs = {
            "input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]]),
            "attention_mask": torch.ones(2, 3, dtype=torch.long),
        }
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        routed = model.eval().generate(**inputs, adapter_names=["two", "__base__"], **options)
        model.set_adapter("two")
        assert torch.equal(routed[0], model.generate(**inputs, **options)[0])
        with model.disable_adapter():
            assert torch.equal(routed[1], model.generate(**inputs, **options)[1])


class TestMaking:
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

    def test_names_fall_through_to_the_base(self):
        model = pair()
        assert model.embed is model.get_base_model().embed
        with pytest.raises(AttributeError, match="no_such_thing"):
            model.no_such_thing

    @pytest.mark.parametrize("task", sorted(tasks))
    def test_a_task_type_chooses_the_wrapper(self, task):
        wrapper = resolve(tasks[task].wrapper)
        assert issubclass(wrapper, PeftModel)
        assert wrapper.task_type == tasks[task].task_type

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
