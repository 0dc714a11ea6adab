"""Files that are broken, foreign, from the future, or cut off while they are written: refused by name, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.errors import AdapterkitError, CheckpointError, ConfigError
from adapterkit.files import PENDING, current, finish
from tests.parity.bases import IDS, X, llama, mlp
from tests.parity.helpers import add_noise

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def saved(tmp_path):
    """An adapter's directory."""
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"]))
    add_noise(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(directory, act):
    """Rewrite an adapter's tensors."""
    state = load_file(directory / WEIGHTS)
    save_file(act(state), directory / WEIGHTS, metadata={"format": "pt"})


def change_config(directory, **fields):
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_refused(directory, match, error=CheckpointError, base=mlp, **options):
    """Loading fails, says so, and leaves the base model and a model with another adapter as they were."""
    model = base()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(error, match=match):
        PeftModel.from_pretrained(model, directory, **options)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    if base is mlp:
        other = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0"]), "other")
        names, status = list(other.state_dict()), other.get_model_status()
        with pytest.raises(error, match=match):
            other.load_adapter(directory, "broken", **options)
        assert list(other.peft_config) == ["other"]
        assert other.active_adapters == ["other"]
        assert list(other.state_dict()) == names
        assert other.get_model_status() == status


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file(saved, keep):
    path = saved / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(saved, rf"{WEIGHTS} cannot be read")


def test_a_file_of_noise(saved):
    (saved / WEIGHTS).write_bytes(bytes(range(256)) * 4)
    assert_refused(saved, rf"{WEIGHTS} cannot be read")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.uint8])
def test_a_wrong_dtype(saved, dtype):
    change(saved, lambda state: {key: tensor.to(dtype) for key, tensor in state.items()})
    assert_refused(saved, rf"type: lin0.lora_A.weight is {dtype}, expected torch.float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_floating_dtype_is_taken(saved, dtype):
    exact = load_file(saved / WEIGHTS)
    change(saved, lambda state: {key: tensor.to(dtype) for key, tensor in state.items()})
    model = PeftModel.from_pretrained(mlp(), saved)
    value = model.get_base_model().lin0.adapters["default"].lora_A.weight
    assert torch.equal(value, exact["base_model.model.lin0.lora_A.weight"].to(dtype).float())


def test_a_missing_tensor(saved):
    change(saved, lambda state: {key: t for key, t in state.items() if "lin1.lora_B" not in key})
    assert_refused(saved, r"missing: lin1\.lora_B\.weight")


def test_an_extra_tensor(saved):
    change(saved, lambda state: {**state, "base_model.model.lin2.lora_A.weight": torch.zeros(2, 8)})
    assert_refused(saved, r"unexpected: lin2\.lora_A\.weight")


def test_swapped_shapes(saved):
    change(saved, lambda state: {key: t.T.contiguous() if "lin0" in key else t for key, t in state.items()})
    assert_refused(saved, r"shape: lin0\.lora_A\.weight is \(6, 2\), expected \(2, 6\)")


def test_renamed_modules_are_named_with_their_nearest(saved):
    change(saved, lambda state: {key.replace("lin1", "linear1"): tensor for key, tensor in state.items()})
    assert_refused(saved, r"missing: lin1\.lora_A\.weight \(the file has linear1\.lora_A\.weight\)")


def test_renamed_modules_are_mapped_when_asked(saved):
    exact = load_file(saved / WEIGHTS)
    change(saved, lambda state: {key.replace("lin1", "linear1"): tensor for key, tensor in state.items()})
    model = PeftModel.from_pretrained(mlp(), saved, key_mapping={r"^linear1\.": "lin1."})
    value = model.get_base_model().lin1.adapters["default"].lora_A.weight
    assert torch.equal(value, exact["base_model.model.lin1.lora_A.weight"])


def test_what_does_not_fit_is_taken_only_when_asked(saved):
    change(saved, lambda state: {key: t for key, t in state.items() if "lin1.lora_B" not in key})
    change(saved, lambda state: {**state, "base_model.model.lin2.lora_A.weight": torch.zeros(2, 8)})
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"]), "other")
    result = model.load_adapter(saved, "partial", strict=False, low_cpu_mem_usage=False)
    assert result.missing_keys == ["lin1.lora_B.weight"]
    assert result.unexpected_keys == ["lin2.lora_A.weight"]


def test_an_adapter_for_another_architecture(saved):
    assert_refused(saved, r"target_modules: 'lin0' matches no module", error=ConfigError, base=llama)


def test_an_adapter_for_another_size(tmp_path):
    get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path)
    assert_refused(
        tmp_path, r"shape: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight is \(2, 16\), expected \(2, 32\)",
        base=lambda: llama(hidden_size=32),
    )  # fmt: skip


def test_a_config_from_a_newer_release(saved):
    change_config(saved, rotates_phase=True)
    assert_refused(saved, r"LoraConfig does not know rotates_phase=True.*allow_unknown", error=ConfigError)
    model = PeftModel.from_pretrained(mlp(), saved, allow_unknown=["rotates_phase"])
    assert model.active_adapter == "default"


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_a_new_key_without_a_value_changes_nothing(saved, value):
    change_config(saved, rotates_phase=value)
    assert PeftModel.from_pretrained(mlp(), saved).active_adapter == "default"


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"r": "2"}, "r: .*'2'"), ({"r": 0}, "r: .*0"), ({"lora_alpha": "abc"}, "lora_alpha"),
     ({"peft_type": "LORRA"}, "lora"), ({"use_dora": "no"}, "use_dora"), ({"bias": "some"}, "bias")],
    ids=str,
)  # fmt: skip
def test_a_config_with_wrong_values(saved, fields, match):
    change_config(saved, **fields)
    assert_refused(saved, match, error=ConfigError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_config_that_is_no_json_object(saved, text):
    (saved / CONFIG).write_text(text)
    assert_refused(saved, CONFIG)


def test_a_directory_without_config(saved):
    (saved / CONFIG).unlink()
    assert_refused(saved, rf"has no {CONFIG}: not an adapter's directory")


def test_a_directory_without_weights(saved):
    (saved / WEIGHTS).unlink()
    assert_refused(saved, "has neither adapter_model.safetensors nor adapter_model.bin")


def test_no_directory_at_all(tmp_path):
    assert_refused(tmp_path / "nowhere", "neither a directory nor the name of a repository")


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_place_of_weights_is_not_run(saved, tmp_path):
    (saved / WEIGHTS).write_bytes(pickle.dumps(Touch(tmp_path / "run")))
    assert_refused(saved, "cannot be read")
    (saved / WEIGHTS).unlink()
    (saved / "adapter_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "run")))
    assert_refused(saved, r"adapter_model\.bin")
    torch.save({"x": Touch(tmp_path / "run")}, saved / "adapter_model.bin")
    assert_refused(saved, r"adapter_model\.bin")
    assert not (tmp_path / "run").exists()


def test_a_pickled_file_of_something_else(saved):
    (saved / WEIGHTS).unlink()
    torch.save({"x": 1}, saved / "adapter_model.bin")
    assert_refused(saved, "is not a file of tensors")


def test_an_unknown_option_is_not_swallowed(saved):
    assert_refused(saved, r"unknown option 'subfoldr'; did you mean 'subfolder'\?", error=TypeError, subfoldr="x")


def test_a_config_override_is_honoured_or_refused(saved):
    assert LoraConfig.from_pretrained(saved, lora_alpha=4).lora_alpha == 4
    with pytest.raises(ConfigError, match=r"LoraConfig has no 'lora_alfa'; did you mean 'lora_alpha'\?"):
        LoraConfig.from_pretrained(saved, lora_alfa=4)


def trained(scale):
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"], lora_alpha=scale))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(scale)
    return model


def is_whole(directory, scales=(1, 2)):
    """The scale of the adapter in a directory; an AssertionError unless weights and config are of one save."""
    config = json.loads(current(directory / CONFIG).read_text())
    values = {float(v) for tensor in load_file(current(directory / WEIGHTS)).values() for v in tensor.unique()}
    assert len(values) == 1
    assert values <= set(scales)
    assert config["lora_alpha"] == values.pop()
    return config["lora_alpha"]


@pytest.mark.parametrize("what", ["replace", "fsync", "mkstemp"])
def test_a_disk_that_refuses(tmp_path, monkeypatch, what):
    trained(1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    place = {"replace": "pathlib.Path.replace", "fsync": "os.fsync", "mkstemp": "tempfile.mkstemp"}[what]
    with monkeypatch.context() as patch:
        patch.setattr(place, refuse)
        with pytest.raises(CheckpointError, match=r"cannot be written.*Read-only file system"):
            trained(2).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trained(1).save_pretrained(tmp_path / "file")


def test_a_full_disk(tmp_path):
    trained(1).save_pretrained(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
        with pytest.raises(CheckpointError, match="cannot be written"):
            trained(2).save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert is_whole(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", CONFIG, WEIGHTS]


KILLED = """
import sys
from pathlib import Path
from tests.test_faults import trained
models = {scale: trained(scale) for scale in (1, 2)}
directory = Path(sys.argv[1])
models[1].save_pretrained(directory)
print("ready", flush=True)
while True:
    for scale in (2, 1):
        models[scale].save_pretrained(directory)
"""


def test_a_kill_while_saving_leaves_one_whole_adapter(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "adapter")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for moment in range(20):  # what stands there while saving goes on is whole, and so is what a kill leaves
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        shutil.copytree(tmp_path / "adapter", tmp_path / f"at_{moment}")
        process.send_signal(signal.SIGCONT)
        time.sleep(0.013)
    process.kill()
    process.wait()
    process.stdout.close()
    for directory in [*tmp_path.glob("at_*"), tmp_path / "adapter"]:
        is_whole(directory)
        assert PeftModel.from_pretrained(mlp(), directory)(X).isfinite().all()
    trained(2).save_pretrained(tmp_path / "adapter")
    assert is_whole(tmp_path / "adapter") == 2
    assert not (tmp_path / "adapter" / PENDING).exists()


def test_names_that_were_being_taken_are_taken_by_the_next_save(tmp_path):
    trained(1).save_pretrained(tmp_path / "a")
    trained(2).save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b" / WEIGHTS, tmp_path / "a" / WEIGHTS)  # one name is taken, the other is not
    shutil.copy(tmp_path / "b" / CONFIG, tmp_path / "a" / ".new")
    (tmp_path / "a" / PENDING).write_text(json.dumps({WEIGHTS: ".gone", CONFIG: ".new"}))
    assert is_whole(tmp_path / "a") == 2
    assert PeftModel.from_pretrained(mlp(), tmp_path / "a").peft_config["default"].lora_alpha == 2
    finish(tmp_path / "a")
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["lora_alpha"] == 2
    assert not (tmp_path / "a" / PENDING).exists()


def test_nothing_goes_to_the_network_on_save(tmp_path, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a save must not use the network")

    base = llama()
    base.name_or_path = "someone/not-in-any-cache"
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model.save_pretrained(tmp_path)
    assert model(input_ids=IDS).logits.isfinite().all()
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "someone/not-in-any-cache"


def test_every_refusal_is_ours():
    assert issubclass(CheckpointError, AdapterkitError)
    assert issubclass(CheckpointError, ValueError)
