"""The two files of an adapter: unreadable ones are refused, and a save is whole or not at all."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from adapterkit import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from adapterkit.errors import CheckpointError, ConfigError, StateError
from tests.models import batch, lora, moved, net

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


FIRST = "base_model.model.layers.0.query.lora_A.weight"


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

    monkeypatch.setattr("adapterkit.checkpoint.files.write_tensors", fail)
    with pytest.raises(CheckpointError, match="no space left on device"):
        moved(r=4).save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert torch.equal(PeftModel.from_pretrained(net(), directory)(batch()), model(batch()))


def test_what_changes_is_synced_and_nothing_else(saved, monkeypatch):
    directory, model = saved
    synced = []
    monkeypatch.setattr(
        "adapterkit.files.os.fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}"))
    )

    def saves(other):
        synced.clear()
        other.save_pretrained(directory)
        return [next(name for name in (WEIGHTS, CONFIG) if name in path) for path in synced]

    assert saves(model) == []
    with torch.no_grad():
        model.base_model.layers["layers.0.query"].adapters["default"].lora_A.weight.add_(1)
    assert saves(model) == [WEIGHTS]
    assert saves(moved(r=4)) == [WEIGHTS, CONFIG]


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
