"""Starts from data and from what quantisation loses: laws, files, runs and refusals."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from adapterkit import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_eva_state_dict,
    get_peft_model,
    initialize_lora_eva_weights,
    preprocess_corda,
    preprocess_loraga,
    replace_lora_weights_loftq,
)
from adapterkit.errors import CapabilityError, CheckpointError, ConfigError, StateError
from adapterkit.methods.lora import start
from adapterkit.nn import storage
from adapterkit.registry import resolve
from tests.parity.bases import IDS, bert

SIZES = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second"]}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, 20, 64, generator=generator)} for _ in range(3)]


def loss(model, batch):
    return model(**batch).square().mean()


def started(scheme, base=None, **fields):
    """An adapter that starts as a run starts it."""
    config = LoraConfig(**{**SIZES, **fields}, init_lora_weights=scheme)
    model = get_peft_model(Two() if base is None else base, config)
    resolve(config.data_init)(model, "default", batches(), loss=loss)
    return model.eval()


@pytest.mark.parametrize("scheme", ["eva", "corda", "lora_ga"])
class TestFromData:
    def test_starts_as_the_base_with_gradients_for_all(self, scheme):
        model, x = started(scheme), batches()[0]["x"]
        torch.testing.assert_close(model(x), Two()(x), atol=1e-5, rtol=1e-4)
        model(x).square().sum().backward()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained
        assert all(".lora_" in name for name in trained)
        assert all(parameter.grad is not None for parameter in trained.values())

    def test_is_repeatable(self, scheme):
        made = []
        for seed in (1, 2):
            base = Two()
            torch.manual_seed(seed)  # which nothing depends on
            made.append(dict(started(scheme, base).named_parameters()))
        first, second = made
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    def test_leaves_the_base_to_a_start_of_another_rank(self, scheme):
        base, x = started(scheme).unload(), batches()[0]["x"]
        assert all(vars(module).keys() == vars(nn.Linear(1, 1)).keys() for module in (base.first, base.second))
        torch.testing.assert_close(started(scheme, base, r=2)(x), Two()(x), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
    def test_files_hold_what_it_started_with(self, scheme, low_cpu_mem_usage, tmp_path):
        model, x = started(scheme), batches()[0]["x"]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(Two(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(again(x), model(x))
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(merged(x), model(x), atol=1e-4, rtol=1e-4)

    def test_says_so_where_it_has_seen_no_data(self, scheme):
        model = get_peft_model(Two(), LoraConfig(**SIZES, init_lora_weights=scheme))
        with pytest.raises(StateError, match=f"'{scheme}' starts from data"):
            model(batches()[0]["x"])
        with pytest.raises(StateError, match="starts from data"):
            model.merge_adapter()

    def test_is_for_linear_layers(self, scheme):
        config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=scheme)
        with pytest.raises(CapabilityError, match="linear"):
            get_peft_model(nn.Sequential(nn.Embedding(8, 8)), config)


def test_eva_gives_ranks_away():
    def poor(model, batch):  # the second layer's input hardly varies, the first one's does
        x = batch["x"] * 1.0
        return model.get_base_model().second(0 * torch.tanh(model.get_base_model().first(x)) + x[..., :1].expand_as(x))

    config = LoraConfig(r=2, lora_alpha=6, target_modules=["first", "second"], init_lora_weights="eva")
    model = get_peft_model(Two(), config)
    initialize_lora_eva_weights(model, batches(), forward_fn=poor, prepare_model_inputs_fn=None)
    honoured = model.peft_config["default"]
    ranks = {name: layer.adapters["default"].r for name, layer in model.base_model.layers.items()}
    assert sum(ranks.values()) == 4
    assert ranks["second"] < ranks["first"] if "second" in ranks else honoured.target_modules == ["first"]
    assert honoured.at("first").lora_alpha == 3 * ranks["first"]


def test_corda_starts_from_the_directions_that_the_data_use():
    model = Two()
    basis = torch.linalg.qr(torch.randn(64, 64)).Q[:, :2]
    rows = torch.randn(500, 2) @ basis.T
    config = LoraConfig(r=2, target_modules=["first"], init_lora_weights="corda")
    preprocess_corda(model, config, lambda: model(rows))
    adapter = get_peft_model(model, config).base_model.layers["first"].adapters["default"]
    taken = adapter.scaling * rows @ adapter.start_A.T @ adapter.start_B.T
    torch.testing.assert_close(taken, rows @ model.first.weight.T, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_what_is_learnt_of_the_data_is_that_of_the_targets(task):
    base = bert("ForSequenceClassification")
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights="corda", task_type=task)
    preprocess_corda(base, config, lambda: base(IDS))
    learnt = {name for name, module in base.named_modules() if hasattr(module, start.EIGENS)}
    assert learnt == get_peft_model(base, config).base_model.layers.keys()
    assert ("classifier" in learnt) is (task is None)


LEARN = {
    "corda": lambda model, config: preprocess_corda(model, config, lambda: model(IDS)),
    "lora_ga": lambda model, config: preprocess_loraga(model, config, lambda: model(IDS).logits.sum().backward()),
    "eva": lambda model, config: get_eva_state_dict(model, [{"input_ids": IDS}], config),
    "made": get_peft_model,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["corda", "lora_ga", "eva"])
def test_what_is_learnt_of_a_model_leaves_its_mode(how, training):
    base = bert("ForSequenceClassification").train(training)
    LEARN[how](base, LoraConfig(r=2, init_lora_weights=how))
    assert {module.training for module in base.modules()} == {training}


def with_corda_file(model, targets, file):
    settings = {"cache_file": str(file)}
    config = LoraConfig(target_modules=targets, init_lora_weights="corda", corda_config=settings)
    preprocess_corda(model, config, lambda: model(IDS))


def with_loraga_file(model, targets, file):
    config = LoraConfig(target_modules=targets, init_lora_weights="lora_ga")
    preprocess_loraga(model, config, lambda: model(IDS).last_hidden_state.square().sum().backward(), str(file))


@pytest.mark.parametrize("learn", [with_corda_file, with_loraga_file])
def test_a_file_of_what_was_learnt_that_is_broken_or_of_other_layers_is_named(learn, tmp_path):
    learn(bert(), ["query"], tmp_path / "learnt.pt")
    with pytest.raises(CheckpointError, match=r"learnt\.pt is of other layers: it has no '.*\.key\."):
        learn(bert(), ["key"], tmp_path / "learnt.pt")
    (tmp_path / "broken.pt").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"broken\.pt is not a file of tensors: "):
        learn(bert(), ["query"], tmp_path / "broken.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt is not a file of tensors by name"):
        learn(bert(), ["query"], tmp_path / "list.pt")


def test_a_file_of_another_rank_is_named(tmp_path):
    with_corda_file(bert(), ["query"], tmp_path / "learnt.pt")
    settings = {"cache_file": str(tmp_path / "learnt.pt")}
    config = LoraConfig(r=4, target_modules=["query"], init_lora_weights="corda", corda_config=settings)
    with pytest.raises(CheckpointError, match=r"learnt\.pt is of another rank: 8 at '.*\.query', not 4; delete it"):
        preprocess_corda(bert(), config)


@pytest.mark.parametrize("how", LEARN)
def test_experts_do_not_start_from_data(how):
    sizes = {"num_hidden_layers": 1, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    sizes |= {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    model, scheme = MixtralForCausalLM(MixtralConfig(**sizes)), "eva" if how == "made" else how
    config = LoraConfig(r=2, target_modules=["q_proj", "w1", "w2", "w3"], init_lora_weights=scheme)
    with pytest.raises(CapabilityError, match=f"init_lora_weights='{scheme}' is .*(down|up)_proj"):
        LEARN[how](model, config)


@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_is_the_quantised_base_and_nearer_to_it_than_that(bits):
    base = Two()
    settings = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": bits, "loftq_iter": 3}}
    model = get_peft_model(base, LoraConfig(**SIZES, **settings)).eval()
    x = batches()[0]["x"]
    expected = model(x)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), Two()(x))
    weight = Two().first.weight
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected)
    merged, rounded = model.get_base_model().first.base_layer.weight, storage.rounded(weight.detach(), bits)
    assert 0 < (merged - weight).norm() < 0.95 * (rounded - weight).norm()
    assert (len(rounded[0].unique()) <= 2**4) == (bits == 4)  # a row is one block


def quantised(model):
    from bitsandbytes.nn import Linear4bit

    for name in ("first", "second"):
        old = getattr(model, name)
        new = Linear4bit(old.in_features, old.out_features, compute_dtype=torch.float32, quant_type="nf4")
        new.load_state_dict(old.state_dict())
        setattr(model, name, new.to("cpu"))
    return model


def write_shards(state, directory):
    names = {key: f"model-{number}.safetensors" for number, key in enumerate(state)}
    for key, name in names.items():
        save_file({key: state[key]}, directory / name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_loftq_on_a_quantised_base(is_sharded, tmp_path):
    if is_sharded:
        write_shards(Two().state_dict(), tmp_path)
    else:
        save_file(dict(Two().state_dict()), tmp_path / "model.safetensors")
    model = get_peft_model(quantised(Two()), LoraConfig(**SIZES))
    layer, exact = model.base_model.layers["first"], Two().first.weight
    lost = (layer.view.weight - exact).norm()
    seen = []
    replace_lora_weights_loftq(model, tmp_path, callback=lambda model, name: seen.append(name) or name == "first")
    assert seen == ["first", "second"]
    assert (layer.adapters["default"].adapt_weight(layer.view.weight) - exact).norm() < 0.95 * lost
    assert not model.base_model.layers["second"].adapters["default"].lora_B.weight.any()  # taken back
    with pytest.raises(CapabilityError, match="before it is quantised"):
        get_peft_model(quantised(Two()), LoraConfig(**SIZES, init_lora_weights="loftq"))
    with pytest.raises(CapabilityError, match="nothing to make up for"):
        replace_lora_weights_loftq(get_peft_model(Two(), LoraConfig(**SIZES)), tmp_path)


@pytest.mark.parametrize("field", ["eva_config", "corda_config", "lora_ga_config", "loftq_config"])
def test_settings_of_another_start_are_refused(field):
    value = {"loftq_config": {"loftq_bits": 8}}.get(field, {})
    with pytest.raises(ValueError, match=f"{field}=.* would do nothing without init_lora_weights"):
        LoraConfig(init_lora_weights="gaussian", **{field: value})


def test_a_file_of_pefts_that_says_where_it_began_is_read(tmp_path):
    """PEFT leaves the settings of a start in the file of an adapter that it converts to one without."""
    stated = {"peft_type": "LORA", "init_lora_weights": True, "corda_config": {"corda_method": "kpm"}}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**stated, "inference_mode": True}))
    assert LoraConfig.from_pretrained(tmp_path).corda_config.corda_method == "kpm"


def test_settings_have_defaults_and_files():
    config = LoraConfig(init_lora_weights="eva")
    assert config.eva_config is not None
    assert config.eva_config.rho == 2.0
    assert PeftConfig.from_dict(config.to_dict()) == config
    assert LoraConfig(loftq_config={}).loftq_config is None
    assert LoraConfig(init_lora_weights="loftq").loftq_config.loftq_bits == 4


def test_eva_needs_something_to_look_at():
    model = get_peft_model(Two(), LoraConfig(**SIZES, init_lora_weights="eva"))
    with pytest.raises(ConfigError, match="dataloader or eva_state_dict"):
        initialize_lora_eva_weights(model)
    with pytest.raises(ConfigError, match="not 'eva'"):
        initialize_lora_eva_weights(get_peft_model(Two(), LoraConfig(**SIZES)), batches())


def test_lora_ga_needs_two_directions_a_rank():
    with pytest.raises(ConfigError, match=r"takes 2 r directions; a weight \(32, 64\) has fewer"):
        started("lora_ga", r=17, target_modules=["second"])


@pytest.mark.parametrize("scheme", ["pissa", "olora"])
def test_a_module_saved_whole_is_written_as_it_is_beside_the_difference_to_a_start(scheme, tmp_path):
    config = LoraConfig(r=4, target_modules=["first"], modules_to_save=["second"], init_lora_weights=scheme)
    model = get_peft_model(Two(), config)
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    model.save_pretrained(tmp_path / "whole", path_initial_model_for_weight_conversion=tmp_path / "start")
    again, x = PeftModel.from_pretrained(Two(), tmp_path / "whole"), batches()[0]["x"]
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["pissa", "olora"])
def test_a_start_that_the_file_does_not_tell_of_is_warned_of(scheme, tmp_path):
    model = get_peft_model(Two(), LoraConfig(**SIZES, init_lora_weights=scheme))
    model.save_pretrained(tmp_path / "told")
    model.peft_config["default"].init_lora_weights = True
    with pytest.warns(UserWarning, match=r"'default' is saved with init_lora_weights=True.* computes something else"):
        model.save_pretrained(tmp_path / "start")
    moved = model(batches()[0]["x"])
    model.save_pretrained(tmp_path / "whole", path_initial_model_for_weight_conversion=tmp_path / "start")
    again = PeftModel.from_pretrained(Two(), tmp_path / "whole")
    torch.testing.assert_close(again(batches()[0]["x"]), moved, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["pissa", "pissa_niter_2", "olora", "loftq"])
def test_a_weight_of_fewer_directions_than_the_rank_is_named(scheme):
    config = LoraConfig(r=8, target_modules=["0"], init_lora_weights=scheme)
    message = r"takes r=8 directions of the weight; one of \(6, 16\) has 6: give it a smaller r"
    with pytest.raises(CapabilityError, match=message) as caught:
        get_peft_model(nn.Sequential(nn.Linear(16, 6)), config)
    assert any("at '0'" in note for note in caught.value.__notes__)
