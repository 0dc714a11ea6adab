"""The adapter that a word on the command line means, and what its files say of themselves."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from adapterkit import __version__
from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.ondisk.reading import AdapterFiles, locate
from tests.models import pair
from tests.ondisk.damage import change, pickled
from tests.parity.helpers import peft, quiet


def test_a_directory_and_each_of_its_files_is_the_adapter(saved):
    directory, model = saved
    places = [directory, directory / "adapter_config.json", directory / "adapter_model.safetensors"]
    for files in map(locate, map(str, places)):
        assert files.directory == directory
        assert (files.config.r, files.config.target_modules) == (2, model.peft_config["default"].target_modules)
        assert files.header.tensors.keys() == files.tensors().keys()


def test_a_run_is_its_adapter(tmp_path, saved):
    run = tmp_path / "run"
    saved[1].save_pretrained(run / "adapter")
    saved[1].save_pretrained(run / "checkpoints" / "checkpoint-1")
    saved[1].save_pretrained(run / "earlier")
    assert locate(str(run)).directory == run / "adapter"


def test_of_several_one_must_be_named(tmp_path):
    pair().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"several adapters; say which: .*one, .*two"):
        locate(str(tmp_path))
    assert locate(str(tmp_path / "two")).config.r == 3


def test_a_hub_id_is_looked_for_in_the_cache_alone(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="some/adapter: no such file or directory, and no repository"):
        locate("some/adapter")
    snapshot = tmp_path / "cache" / "models--some--adapter" / "snapshots" / "abc"
    saved[1].save_pretrained(snapshot)
    reference = snapshot.parent.parent / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("abc")
    assert locate("some/adapter").directory == snapshot


def test_a_path_that_is_not_there():
    with pytest.raises(ConfigError, match=r"\./nowhere: no such file or directory$"):
        locate("./nowhere")


def test_a_pickled_file_has_the_same_entries(saved):
    directory, _ = saved
    header = AdapterFiles(directory).header
    pickled(directory)
    assert AdapterFiles(directory).header.tensors == header.tensors
    assert locate(str(directory / "adapter_model.bin")).weights.name == "adapter_model.bin"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("adapter_config.json", "{", "cannot be read"),
        ("adapter_config.json", "[]", "expected an object, found list"),
        ("adapter_config.json", None, "not an adapter's directory"),
        ("adapter_model.safetensors", None, "neither adapter_model.safetensors nor adapter_model.bin"),
    ],
)
def test_what_is_not_there_or_no_adapter_is_told(saved, name, content, word):
    path = saved[0] / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=word):
        locate(str(saved[0])).settings, locate(str(saved[0])).header


def test_the_writer_and_the_base_are_told(saved, tmp_path):
    directory, model = saved
    assert AdapterFiles(directory).writer == f"adapterkit {__version__}, in the format of PEFT 0.21.2"
    (directory / "README.md").unlink()
    assert AdapterFiles(directory).writer == "adapterkit, in the format of PEFT 0.21.2"
    assert AdapterFiles(directory).base["architecture"] == "Net"
    with quiet():
        theirs = peft.get_peft_model(model.get_base_model(), peft.LoraConfig(target_modules=["classifier"]))
        theirs.save_pretrained(tmp_path / "theirs")
    files = AdapterFiles(tmp_path / "theirs")
    assert (files.writer, files.base) == (f"PEFT {peft.__version__}", {})
    settings = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    change(tmp_path / "theirs", **dict.fromkeys(settings))
    (tmp_path / "theirs" / "README.md").unlink()
    assert AdapterFiles(tmp_path / "theirs").writer == "unknown"
