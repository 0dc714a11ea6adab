"""Arguments of another type than is wanted: refused by their name before anything is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import adapterkit as ak
from adapterkit import helpers
from adapterkit.errors import EXIT_CONFIG, AdapterkitError, ArgumentError, ConfigError
from adapterkit.given import names_of, numbers_of
from tests.models import batch, lora, net, pair, values

NO_NAME = [None, 3, ["one"], {"r": 8}, b"one", ak.LoraConfig, lora(), torch.ones(2), "", ()]
NO_NAMES = [3, True, [1], [["one"]], object(), ak.LoraConfig, lora(), torch.ones(2), torch.tensor(1.0), b"one"]
NO_PATH = [None, 3, ["adapter"], {"r": 8}, lora(), ak.LoraConfig, torch.ones(2)]
NO_CONFIG = [3, "lora", {"r": 8}, ak.LoraConfig, net(), ["r", 8]]
NO_MODULE = [None, "bert", {"r": 8}, lora(), torch.nn.Linear, torch.ones(2)]
NO_NUMBERS = [None, 3, "10", ["1", "0"], [None, 1.0], [True, 1.0], [[1.0], [0.0]], [float("nan"), 1.0], lora()]
NO_NUMBER = ["3", [3], True, float("inf"), torch.ones(2), ak.LoraConfig]
NO_TENSORS = [3, "x", ["x"], {1: torch.ones(2)}, lora(), torch.ones(2)]


@pytest.fixture(scope="module")
def model():
    return pair()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The directory of an adapter."""
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    return directory / "one"


def rescaled(model, multiplier=2.0):
    with helpers.rescale_adapter_scale(model, multiplier):
        raise AssertionError("entered")


def combined(model, **changes):
    stated = {"adapters": ["one", "two"], "weights": [1.0, 1.0], "adapter_name": "sum", "combination_type": "ties_svd"}
    model.add_weighted_adapter(**{**stated, **changes})


WRONG = [
    ("adapter_name", NO_NAME, lambda m, _, x: m.add_adapter(x, lora())),
    ("adapter_name", NO_NAME, lambda m, _, x: m.delete_adapter(x)),
    ("adapter_name", NO_NAME, lambda m, d, x: m.load_adapter(d, x)),
    ("adapter_name", NO_NAME, lambda m, _, x: m.supports_lora_conversion(x)),
    ("adapter_name", NO_NAME, lambda m, _, x: m.get_prompt_embedding_to_save(x)),
    ("adapter_name", NO_NAME, lambda _, d, x: ak.PeftModel.from_pretrained(net(), d, x)),
    ("adapter_name", NO_NAME, lambda _, d, x: ak.PeftMixedModel.from_pretrained(net(), d, x)),
    ("adapter_name", NO_NAME, lambda _, d, x: ak.AutoPeftModel.from_pretrained(d, x)),
    ("adapter_name", NO_NAME, lambda *a: ak.get_peft_model(net(), lora(), a[2])),
    ("adapter_name", NO_NAME, lambda *a: ak.inject_adapter_in_model(lora(), net(), a[2])),
    ("adapter_name", NO_NAME, lambda m, _, x: ak.get_peft_model_state_dict(m, None, x)),
    ("adapter_name", NO_NAME, lambda m, _, x: ak.set_peft_model_state_dict(m, {}, x)),
    ("adapter_name", NO_NAME, lambda m, d, x: ak.hotswap_adapter(m, d, x)),
    ("adapter_name", NO_NAME, lambda m, _, x: ak.convert_to_lora(m, 2, x)),
    ("adapter_name", NO_NAME, lambda m, _, x: combined(m, adapter_name=x)),
    ("revision", [3, ["main"]], lambda *a: ak.get_peft_model(net(), lora(), revision=a[2])),
    ("adapter_name", NO_NAMES, lambda m, _, x: m.set_adapter(x)),
    ("adapter_names", NO_NAMES, lambda m, _, x: m.set_requires_grad(x)),
    ("adapter_names", NO_NAMES, lambda m, _, x: m.merge_adapter(x)),
    ("adapter_names", NO_NAMES, lambda m, _, x: m.merge_and_unload(adapter_names=x)),
    ("adapters", NO_NAMES, lambda m, _, x: combined(m, adapters=x)),
    ("selected_adapters", NO_NAMES, lambda m, d, x: m.save_pretrained(d, selected_adapters=x)),
    ("adapter_names", ["one", 3, [["one"], ["two"]], lora()], lambda m, _, x: m(batch(2), adapter_names=x)),
    ("model_id", NO_PATH, lambda m, _, x: m.load_adapter(x, "other")),
    ("model_id", NO_PATH, lambda *a: ak.PeftModel.from_pretrained(net(), a[2])),
    ("model_id", NO_PATH, lambda *a: ak.PeftMixedModel.from_pretrained(net(), a[2])),
    ("model_id", NO_PATH, lambda *a: ak.PeftConfig.from_pretrained(a[2])),
    ("model_id", NO_PATH, lambda *a: ak.load_peft_weights(a[2])),
    ("model_name_or_path", NO_PATH, lambda m, _, x: ak.hotswap_adapter(m, x, "one")),
    ("model_name_or_path", NO_PATH, lambda *a: helpers.check_if_peft_model(a[2])),
    ("pretrained_model_name_or_path", NO_PATH, lambda *a: ak.AutoPeftModel.from_pretrained(a[2])),
    ("save_directory", NO_PATH, lambda m, _, x: m.save_pretrained(x)),
    ("save_directory", NO_PATH, lambda *a: lora().save_pretrained(a[2])),
    ("output_dir", NO_PATH, lambda m, _, x: m.create_or_update_model_card(x)),
    ("path", NO_PATH, lambda m, _, x: ak.save_as_lora(x, m, 2)),
    ("path", NO_PATH, lambda *a: ak.PeftConfig.from_json_file(a[2])),
    ("model_path", [3, ["base"]], lambda m, _, x: ak.replace_lora_weights_loftq(m, x, "one")),
    ("repo_id", NO_NAME, lambda m, _, x: m.push_to_hub(x)),
    ("peft_config", NO_CONFIG, lambda *a: ak.get_peft_model(net(), a[2])),
    ("peft_config", NO_CONFIG, lambda *a: ak.PeftModel(net(), a[2])),
    ("peft_config", NO_CONFIG, lambda *a: ak.LoraModel(net(), a[2])),
    ("peft_config", NO_CONFIG, lambda *a: ak.inject_adapter_in_model(a[2], net())),
    ("peft_config", NO_CONFIG, lambda m, _, x: m.add_adapter("other", x)),
    ("config", NO_CONFIG, lambda _, d, x: ak.PeftModel.from_pretrained(net(), d, config=x)),
    ("config", NO_CONFIG, lambda _, d, x: ak.AutoPeftModel.from_pretrained(d, config=x)),
    ("config", [3, {"a": 3}, ["r"]], lambda m, _, x: ak.prepare_model_for_compiled_hotswap(m, config=x)),
    ("config", [*NO_CONFIG, ak.IA3Config()], lambda *a: ak.preprocess_corda(net(), a[2])),
    ("config", [3, "r", ["r"], None], lambda *a: ak.get_peft_config(a[2])),
    ("model", NO_MODULE, lambda *a: ak.get_peft_model(a[2], lora())),
    ("model", NO_MODULE, lambda *a: ak.PeftModel(a[2], lora())),
    ("model", NO_MODULE, lambda *a: ak.inject_adapter_in_model(lora(), a[2])),
    ("model", NO_MODULE, lambda _, d, x: ak.PeftModel.from_pretrained(x, d)),
    ("model", NO_MODULE, lambda _, d, x: ak.PeftMixedModel.from_pretrained(x, d)),
    ("model", NO_MODULE, lambda *a: ak.get_peft_model_state_dict(a[2])),
    ("model", NO_MODULE, lambda *a: ak.set_peft_model_state_dict(a[2], {})),
    ("model", NO_MODULE, lambda *a: ak.get_base_model_state_dict(a[2])),
    ("model", NO_MODULE, lambda *a: ak.set_base_model_state_dict(a[2], {})),
    ("model", NO_MODULE, lambda *a: ak.prepare_model_for_kbit_training(a[2])),
    ("model", NO_MODULE, lambda *a: ak.cast_mixed_precision_params(a[2], torch.float16)),
    ("model", NO_MODULE, lambda _, d, x: ak.hotswap_adapter(x, d, "one")),
    ("model", NO_MODULE, lambda *a: ak.prepare_model_for_compiled_hotswap(a[2])),
    ("model", NO_MODULE, lambda *a: ak.get_layer_status(a[2])),
    ("model", NO_MODULE, lambda *a: ak.get_model_status(a[2])),
    ("model", NO_MODULE, lambda *a: ak.convert_to_lora(a[2], 2)),
    ("model", NO_MODULE, lambda *a: ak.create_loraplus_optimizer(a[2], torch.optim.SGD, lr=1.0, loraplus_lr_ratio=2)),
    ("model", [*NO_MODULE, net()], lambda *a: ak.create_lorafa_optimizer(a[2], 2, 2, 1.0)),
    ("model", [*NO_MODULE, net()], lambda *a: ak.initialize_lora_eva_weights(a[2])),
    ("model", [*NO_MODULE, net()], lambda *a: ak.replace_lora_weights_loftq(a[2])),
    ("model", [*NO_MODULE, net()], lambda *a: helpers.update_signature(a[2])),
    ("model", NO_MODULE, lambda *a: ak.preprocess_corda(a[2], lora())),
    ("model", NO_MODULE, lambda *a: ak.preprocess_loraga(a[2], lora(), lambda: None)),
    ("model", NO_MODULE, lambda *a: rescaled(a[2])),
    ("weights", NO_NUMBERS, lambda m, _, x: combined(m, weights=x)),
    ("combination_type", NO_NAME[1:], lambda m, _, x: combined(m, combination_type=x)),
    ("majority_sign_method", NO_NAME, lambda m, _, x: combined(m, majority_sign_method=x)),
    ("density", NO_NUMBER, lambda m, _, x: combined(m, density=x)),
    ("svd_rank", NO_NUMBER, lambda m, _, x: combined(m, svd_rank=x)),
    ("svd_clamp", NO_NUMBER, lambda m, _, x: combined(m, svd_clamp=x)),
    ("multiplier", [None, *NO_NUMBER], lambda m, _, x: rescaled(m, x)),
    ("target_rank", [*NO_NUMBER, 0], lambda m, _, x: ak.prepare_model_for_compiled_hotswap(m, target_rank=x)),
    (
        "loraplus_lr_ratio",
        [None, *NO_NUMBER],
        lambda m, _, x: ak.create_loraplus_optimizer(m, torch.optim.SGD, lr=1.0, loraplus_lr_ratio=x),
    ),
    (
        "optimizer_cls",
        [None, "sgd", lora(), ak.LoraConfig],
        lambda m, _, x: ak.create_loraplus_optimizer(m, x, lr=1.0, loraplus_lr_ratio=2.0),
    ),
    ("peft_model_state_dict", [*NO_TENSORS, {"x": 3}], lambda m, _, x: ak.set_peft_model_state_dict(m, x, "one")),
    ("state_dict", NO_TENSORS, lambda m, _, x: ak.get_peft_model_state_dict(m, x, "one")),
    ("state_dict", NO_TENSORS, lambda m, _, x: ak.set_base_model_state_dict(m, x)),
    ("state_dict", NO_TENSORS, lambda *a: ak.inject_adapter_in_model(lora(), net(), state_dict=a[2])),
    ("eva_state_dict", NO_TENSORS, lambda m, _, x: ak.initialize_lora_eva_weights(m, None, x, adapter_name="one")),
    ("adapter_name", NO_NAME, lambda m, _, x: ak.get_eva_state_dict(m, [], adapter_name=x)),
    ("subfolder", NO_PATH[1:], lambda m, d, x: m.load_adapter(d, "other", subfolder=x)),
    ("subfolder", NO_PATH[1:], lambda _, d, x: ak.PeftConfig.from_pretrained(d, x)),
    ("key_mapping", [3, "x", ["x"], {1: "x"}], lambda m, d, x: m.load_adapter(d, "other", key_mapping=x)),
    ("allow_unknown", NO_NAMES[2:5], lambda m, d, x: m.load_adapter(d, "other", allow_unknown=x)),
    ("run_model", [3, "x", lora()], lambda *a: ak.preprocess_corda(net(), lora(), a[2])),
    ("train_step", [None, "x", lora()], lambda *a: ak.preprocess_loraga(net(), lora(), a[2])),
    ("cache_file", NO_PATH[1:], lambda *a: ak.preprocess_loraga(net(), lora(), print, a[2])),
    ("dtype", [None, "float16", 16], lambda *a: ak.cast_mixed_precision_params(net(), a[2])),
    (
        "gradient_checkpointing_kwargs",
        [3, ["x"], True],
        lambda *a: ak.prepare_model_for_kbit_training(net(), True, a[2]),
    ),
]


@pytest.mark.parametrize(("argument", "wrong", "call"), WRONG)
def test_an_argument_of_another_type_is_named(argument, wrong, call, model, saved):
    before, adapters = values(model), list(model.peft_config)
    for given in wrong:
        with pytest.raises(ArgumentError, match=rf"^{argument}(\[.*\])?: .* wanted, not ") as caught:
            call(model, saved, given)
        assert isinstance(caught.value, TypeError | ConfigError)
        assert len(str(caught.value)) < 250
    assert list(model.peft_config) == adapters
    assert model.active_adapters == ["one"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in values(model).items())


def test_an_argument_error_is_one_of_usage():
    assert ArgumentError("").exit_code == EXIT_CONFIG
    assert issubclass(ArgumentError, TypeError)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "not None"),
        (3, r"not 3 \(int\)"),
        (ak.LoraConfig, "not the class LoraConfig"),
        (["a"] * 99, r"not \['a', 'a', 'a', 'a', 'a', 'a', \.\.\.\] \(list\)"),
        (net(), r"not an instance of tests\.models\.Net"),
    ],
)
def test_what_was_given_is_shown_in_few_words(given, shown):
    with pytest.raises(ArgumentError, match=rf"^adapter_name: a name is wanted, {shown}$"):
        pair().delete_adapter(given)


def test_a_config_and_a_model_that_changed_places_are_told_apart():
    with pytest.raises(
        ArgumentError, match=r"^model: a torch\.nn\.Module is wanted, not an instance of adapterkit.*LoraConfig$"
    ):
        ak.get_peft_model(lora(), net())
    with pytest.raises(
        ArgumentError, match=r"^peft_config: a config of adapterkit's.*not an instance of tests\.models\.Net$"
    ):
        ak.inject_adapter_in_model(net(), lora())


@pytest.mark.parametrize("given", [["a", "b"], ("a", "b"), {"a": 1, "b": 2}.keys(), iter(["a", "b"])])
def test_any_collection_of_names_is_taken(given):
    assert names_of(given) == ("a", "b")
    assert names_of("ab") == ("ab",)


@pytest.mark.parametrize("given", [[1, 2.0], (1, 2), torch.tensor([1.0, 2.0]), np.array([1, 2]), [np.float32(1), 2]])
def test_any_collection_of_numbers_is_taken(given):
    assert numbers_of(given, "weights") == [1, 2]


def test_the_name_of_one_adapter_is_as_good_as_a_list_of_it(tmp_path):
    model = pair()
    model.merge_adapter("two")
    assert model.base_model.merged_adapters == ("two",)
    model.unmerge_adapter()
    model.save_pretrained(tmp_path, selected_adapters="two")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["two"]


def test_no_choice_of_embeddings_to_save_is_guessed():
    with pytest.raises(AdapterkitError, match="save_embedding_layers='yes': choices are True, False and 'auto'"):
        ak.get_peft_model_state_dict(pair(), adapter_name="one", save_embedding_layers="yes")
