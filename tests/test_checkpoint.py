"""Adapters in files: PEFT's keys, every way a file can be wrong, and nothing half-done."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterkit import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from adapterkit.errors import CheckpointError, ConfigError, StateError
from tests.models import batch, move, net

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def lora(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["query", "value"], **fields})


def moved(**fields) -> PeftModel:
    model = get_peft_model(net(), lora(**fields))
    move(model)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, PeftModel]:
    model = moved()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def edit(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a saved adapter."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def test_keys_are_peft_s():
    model = moved(target_modules=["query", "embed"], bias="lora_only", modules_to_save=["classifier"])
    expected = [f"layers.{i}.query.{t}" for i in (0, 1) for t in ("lora_A.weight", "lora_B.weight", "base_layer.bias")]
    expected += ["embed.lora_embedding_A", "embed.lora_embedding_B", "classifier.weight", "classifier.bias"]
    expected += ["embed.base_layer.weight"]  # a targeted embedding travels with its adapter
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert {f"base_model.model.{key}" for key in expected} - state.keys() <= {
        "base_model.model.embed.base_layer.weight"
    }
    assert state.keys() <= {f"base_model.model.{key}" for key in expected}


def test_tensors_are_the_model_s_own_memory():
    model = moved()
    own = {p.data_ptr() for p in model.parameters()}
    state = get_peft_model_state_dict(model)
    assert all(t.data_ptr() in own and not t.requires_grad for t in state.values())


@pytest.mark.parametrize("safe", [True, False])
def test_a_saved_adapter_is_the_same_again(tmp_path, safe):
    model = moved(modules_to_save=["classifier"], bias="all")
    model.save_pretrained(tmp_path, safe_serialization=safe)
    loaded = PeftModel.from_pretrained(net(), tmp_path)
    assert torch.equal(loaded(batch()), model(batch()))
    assert not loaded.training
    assert loaded.get_nb_trainable_parameters()[0] == 0


def test_saving_again_in_another_form_leaves_one(tmp_path):
    moved().save_pretrained(tmp_path)
    model = get_peft_model(net(), lora())
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path)(batch()), model(batch()))


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_keys_are_read_with_and_without_the_prefix(saved, prefix):
    directory, model = saved
    plain = {key.removeprefix("base_model.model."): t for key, t in load_file(directory / WEIGHTS).items()}
    save_file({prefix + key: tensor for key, tensor in plain.items()}, directory / WEIGHTS)
    assert torch.equal(PeftModel.from_pretrained(net(), directory)(batch()), model(batch()))


def test_injected_and_wrapped_models_read_each_other():
    wrapped, injected = moved(), inject_adapter_in_model(lora(), net()).eval()
    set_peft_model_state_dict(injected, get_peft_model_state_dict(wrapped))
    assert torch.equal(injected(batch()), wrapped(batch()))
    state = get_peft_model_state_dict(injected)
    assert all(key.startswith("layers.") for key in state)
    fresh = get_peft_model(net(), lora()).eval()
    set_peft_model_state_dict(fresh, state)
    assert torch.equal(fresh(batch()), wrapped(batch()))


def test_what_peft_s_wrapper_repeats_is_left_out():
    model = moved(modules_to_save=["classifier"])
    state = get_peft_model_state_dict(model)
    extra = {"base_model.model.classifier.original_module.weight": torch.zeros(3, 8)}
    result = set_peft_model_state_dict(model, {**state, **extra})
    assert result == ([], [])


FIRST = "base_model.model.layers.0.query.lora_A.weight"


def swap(tensors: dict[str, Tensor]) -> None:
    other = FIRST.replace("lora_A", "lora_B")
    tensors[FIRST], tensors[other] = tensors[other], tensors[FIRST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST), r"missing: layers\.0\.query\.lora_A\.weight"),
        (
            lambda t: t.update({FIRST.replace("query", "qeury"): t.pop(FIRST)}),
            r"missing: layers\.0\.query\.lora_A\.weight \(the file has layers\.0\.qeury\.lora_A\.weight\)\n"
            r"  unexpected: layers\.0\.qeury\.lora_A\.weight \(the model has layers\.0\.query\.lora_A\.weight\)",
        ),
        (
            lambda t: t.update({"base_model.model.layers.7.query.lora_A.weight": torch.zeros(2, 8)}),
            r"unexpected: layers\.7",
        ),
        (swap, r"shape: layers\.0\.query\.lora_A\.weight is \(8, 2\), expected \(2, 8\)"),
        (lambda t: t.update({FIRST: t[FIRST].int()}), r"type: layers\.0\.query\.lora_A\.weight is torch\.int32"),
        (lambda t: t.clear(), r"missing: (.|\n)*missing: "),
    ],
    ids=["missing", "misspelt", "surplus", "swapped", "integers", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, message):
    directory, _ = saved
    edit(directory, change)
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(net(), directory)
    model = get_peft_model(net(), lora(), "first")
    before, state = model.state_dict().keys(), get_peft_model_state_dict(model, adapter_name="first")
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(directory, "second")
    assert model.state_dict().keys() == before
    assert list(model.peft_config) == ["first"]
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(directory, "first")
    after = get_peft_model_state_dict(model, adapter_name="first")
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items())


def test_what_does_not_fit_can_be_reported_instead(saved):
    directory, model = saved
    edit(directory, lambda t: t.update({"base_model.model.layers.7.query.lora_A.weight": t.pop(FIRST)}))
    fresh = get_peft_model(net(), lora())
    before = get_peft_model_state_dict(fresh)[FIRST].clone()
    result = fresh.load_adapter(directory, "default", strict=False)
    assert result.missing_keys == ["layers.0.query.lora_A.weight"]
    assert result.unexpected_keys == ["layers.7.query.lora_A.weight"]
    after, state = get_peft_model_state_dict(fresh), get_peft_model_state_dict(model)
    assert torch.equal(after[FIRST], before)
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items() if key != FIRST)


def test_a_long_list_of_problems_is_cut():
    model = get_peft_model(
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(20))), LoraConfig(r=1, target_modules="all-linear")
    )
    with pytest.raises(CheckpointError, match="and 20 more") as error:
        set_peft_model_state_dict(model, {})
    assert len(str(error.value).splitlines()) == 22


def test_shapes_that_differ_can_be_left(saved):
    directory, _ = saved
    edit(directory, swap)
    fresh = get_peft_model(net(), lora())
    result = set_peft_model_state_dict(fresh, load_file(directory / WEIGHTS), ignore_mismatched_sizes=True)
    assert [key.rpartition("query.")[2] for key in result.missing_keys] == ["lora_A.weight", "lora_B.weight"]


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:100]), "cannot be read"),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-10]), "cannot be read"),
        (lambda d: (d / WEIGHTS).write_bytes(b""), "cannot be read"),
        (lambda d: (d / WEIGHTS).write_bytes(pickle.dumps({"a": 1})), "cannot be read"),
        (lambda d: (d / WEIGHTS).unlink(), f"has neither {WEIGHTS} nor adapter_model.bin"),
    ],
    ids=["header cut", "end cut", "empty", "pickle", "absent"],
)
def test_weights_that_cannot_be_read(saved, spoil, message):
    directory, _ = saved
    spoil(directory)
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(net(), directory)


CONTENTS = {"object": {"a": Evil()}, "number": {"a": 1}, "list": [torch.zeros(1)], "nothing": None}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_pickle_of_anything_but_tensors_is_refused(saved, content, capsys):
    directory, _ = saved
    (directory / WEIGHTS).unlink()
    torch.save(content, directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"not a file of tensors|cannot be read"):
        PeftModel.from_pretrained(net(), directory)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.update(rnak=4), ConfigError, "LoraConfig does not know rnak=4"),
        (lambda c: c.update(r="4"), ConfigError, r"adapter_config.json: r: .* \(got '4'\)"),
        (lambda c: c.update(peft_type="LORRA"), ConfigError, "no method named 'lorra'; did you mean 'lora'"),
        (lambda c: c.pop("peft_type"), ConfigError, "peft_type is missing"),
        (lambda c: c.update(target_modules=["nope"]), ConfigError, "'nope' matches no module"),
        (lambda c: c.update(r=3), CheckpointError, r"expected \(3, 8\)"),
        (lambda c: c.update(task_type="FOO"), ConfigError, "no task type 'FOO'"),
    ],
)
def test_configs_that_do_not_fit(saved, change, error, message):
    directory, _ = saved
    content = json.loads((directory / CONFIG).read_text())
    change(content)
    (directory / CONFIG).write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        PeftModel.from_pretrained(net(), directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "expected an object, found list"), (None, "has no adapter_config.json")],
)
def test_configs_that_cannot_be_read(saved, content, message):
    directory, _ = saved
    (directory / CONFIG).unlink()
    if content is not None:
        (directory / CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(net(), directory)


def test_keys_without_a_value_and_named_keys_are_ignored(saved):
    directory, model = saved
    content = {**json.loads((directory / CONFIG).read_text()), "new_feature": None, "old_list": [], "strange": 3}
    (directory / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"strange=3(.|\n)*allow_unknown"):
        PeftModel.from_pretrained(net(), directory)
    loaded = PeftModel.from_pretrained(net(), directory, allow_unknown=["strange"])
    assert torch.equal(loaded(batch()), model(batch()))


def test_an_interrupted_save_leaves_the_last_one(saved, monkeypatch):
    directory, model = saved
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("adapterkit.saving.save_file", fail)
    with pytest.raises(CheckpointError, match="no space left on device"):
        moved(r=4).save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert torch.equal(PeftModel.from_pretrained(net(), directory)(batch()), model(batch()))


def test_several_adapters_have_folders(tmp_path):
    model = moved()
    model.add_adapter("other", lora(r=3))
    model.save_pretrained(tmp_path)
    assert (tmp_path / CONFIG).is_file()
    assert json.loads((tmp_path / "other" / CONFIG).read_text())["r"] == 3
    with pytest.raises(StateError, match="no adapter named 'othr'; did you mean 'other'"):
        model.save_pretrained(tmp_path, selected_adapters=["othr"])


def test_another_process_s_values_are_saved(tmp_path):
    """As FSDP and DeepSpeed gather a state dict."""
    model, other = get_peft_model(net(), lora()), moved()
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path)(batch()), other(batch()))


def test_other_processes_write_nothing(tmp_path):
    moved().save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


def test_values_of_any_kind_survive(tmp_path):
    model = moved()
    with torch.no_grad():
        weight = model.base_model.layers["layers.0.query"].adapters["default"].lora_A.weight
        weight.flatten()[:4] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45])
    model.save_pretrained(tmp_path)
    loaded = get_peft_model_state_dict(PeftModel.from_pretrained(net(), tmp_path))[FIRST]
    assert torch.equal(loaded.view(torch.int32), weight.detach().view(torch.int32))
