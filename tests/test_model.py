"""The public surface of an adapted model: what is loaded, active, trainable and merged are four facts."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, XLNetConfig, XLNetModel

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.errors import CapabilityError, StateError
from tests.models import batch, lora, move, net, pair, trainable


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
            lambda m: m.set_requires_grad(["two", "tow"]),
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

    def test_a_model_whose_layers_have_columns_first(self):
        config = XLNetConfig(vocab_size=30, d_model=8, n_layer=1, n_head=2, d_inner=8)
        model = get_peft_model(XLNetModel(config), lora(target_modules=["layer_1"]))
        x = torch.zeros(2, 4, dtype=torch.long)  # four columns could be taken for two rows by two beams
        with pytest.raises(CapabilityError, match="adapter_names: the layers of a XLNetModel have the columns in dim"):
            model(x, adapter_names=["default", "__base__"])
        model(x)

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
