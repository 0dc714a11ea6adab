"""Adapters pulled from the Hub with the real client: by id, revision and subfolder, from the cache, and refused."""

from __future__ import annotations

import time

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaForCausalLM

from adapterkit import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    hotswap_adapter,
)
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.errors import CheckpointError
from adapterkit.methods.ia3.config import IA3Config
from tests.loopback import READER, WRITER, Repository
from tests.models import batch, lora, move, moved, net, pair
from tests.parity.bases import IDS, llama
from tests.parity.helpers import add_noise

HERE = "me/mine"


def files_of(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def put(hub, model, directory, name=HERE, *, branch="main", **options):
    """Commit a saved model to the server, past the client; gives the commit."""
    model.save_pretrained(directory, **options)
    repository = hub.repositories.setdefault(name, Repository())
    repository.branches.setdefault(branch, repository.branches["main"])
    return repository.add(branch, files_of(directory))


def assert_same(model, other):
    assert torch.equal(model.eval()(batch()), other.eval()(batch()))


def test_by_id(hub, tmp_path):
    model = moved()
    put(hub, model, tmp_path / "saved")
    assert_same(PeftModel.from_pretrained(net(), HERE), model)


def test_by_revision(hub, tmp_path):
    first, second = moved(), moved(r=3)
    commit = put(hub, first, tmp_path / "a")
    put(hub, second, tmp_path / "b", branch="next")
    put(hub, second, tmp_path / "b")
    for revision, expected in ((commit, first), ("next", second), ("main", second), (None, second)):
        assert PeftConfig.from_pretrained(HERE, revision=revision).r == expected.peft_config["default"].r
        assert_same(PeftModel.from_pretrained(net(), HERE, revision=revision), expected)
    loaded = PeftModel.from_pretrained(net(), HERE, revision=commit)
    hotswap_adapter(loaded, HERE, "default", revision="next")
    assert_same(loaded, second)


def test_by_subfolder(hub, tmp_path):
    model = pair()
    put(hub, model, tmp_path / "saved")
    read = PeftModel.from_pretrained(net(), HERE, "one", subfolder="one")
    read.load_adapter(HERE, "two", subfolder="two")
    for name in ("one", "two"):
        model.set_adapter(name)
        read.set_adapter(name)
        assert_same(read, model)


def test_pickled_weights(hub, tmp_path):
    model = moved()
    put(hub, model, tmp_path / "saved", safe_serialization=False)
    assert_same(PeftModel.from_pretrained(net(), HERE), model)


def test_a_mix(hub, tmp_path):
    model = get_peft_model(net(), lora(), "one", mixed=True)
    model.add_adapter("two", IA3Config(target_modules=["value"], feedforward_modules=[]))
    model.set_adapter(["one", "two"])
    move(model)
    put(hub, model, tmp_path / "saved")
    read = PeftMixedModel.from_pretrained(net(), HERE)
    assert read.active_adapters == ["one", "two"]
    assert_same(read, model)
    put(hub, moved(), tmp_path / "single", "me/single")
    assert PeftMixedModel.from_pretrained(net(), "me/single").active_adapters == ["default"]


@pytest.mark.parametrize("loader", [AutoPeftModel, AutoPeftModelForCausalLM])
def test_with_the_base_it_names(hub, tmp_path, loader):
    hub.repositories["me/base"] = Repository()
    llama().save_pretrained(tmp_path / "base")
    hub.repositories["me/base"].branches["old"] = hub.repositories["me/base"].add("main", files_of(tmp_path / "base"))
    other = llama()
    add_noise(other)
    other.save_pretrained(tmp_path / "other")
    hub.repositories["me/base"].add("main", files_of(tmp_path / "other"))
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained("me/base", revision="old"), config, revision="old")
    add_noise(model)
    commit = put(hub, model, tmp_path / "saved")
    assert PeftConfig.from_pretrained(HERE).base_model_name_or_path == "me/base"
    read = loader.from_pretrained(HERE, revision=commit)
    torch.testing.assert_close(read.eval()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


def test_offline_takes_what_is_cached(hub, tmp_path, monkeypatch):
    model = moved()
    commit = put(hub, model, tmp_path / "saved")
    PeftModel.from_pretrained(net(), HERE)
    hub.requests.clear()
    assert_same(PeftModel.from_pretrained(net(), HERE, local_files_only=True), model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(PeftModel.from_pretrained(net(), HERE), model)
    assert_same(PeftModel.from_pretrained(net(), HERE, revision=commit), model)
    for source, revision in ((HERE, "other"), ("me/never", None)):
        with pytest.raises(
            CheckpointError, match=rf"{source} \(revision {revision or 'main'}\): HF_HUB_OFFLINE is set"
        ):
            PeftModel.from_pretrained(net(), source, revision=revision)
    with pytest.raises(CheckpointError, match=r"uploading to me/mine .*HF_HUB_OFFLINE is set"):
        model.push_to_hub(HERE, token=WRITER)
    assert not hub.requests


def test_a_private_repository_wants_a_token(hub, tmp_path):
    model = moved()
    hub.repositories[HERE] = Repository(private=True)
    put(hub, model, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"me/mine \(revision main\): .*if it is private, pass token="):
        PeftModel.from_pretrained(net(), HERE)
    assert_same(PeftModel.from_pretrained(net(), HERE, token=READER), model)


REFUSED = {
    "repository": ("me/none", {}, r"fetching adapter_config.json from me/none \(revision main\): .*check the name"),
    "revision": (HERE, {"revision": "nope"}, r"me/mine \(revision nope\): there is no branch, tag or commit 'nope'"),
    "subfolder": (HERE, {"subfolder": "deep"}, r"fetching deep/adapter_config.json from me/mine .*no such file there"),
    "token": (HERE, {"token": "hf_wrong"}, r"me/mine \(revision main\): the Hub does not accept the token.*token="),
    "forced": (HERE, {"token": "hf_wrong", "force_download": True}, "the Hub does not accept the token"),
    "name": ("me/mine/more", {}, "neither a directory nor the name of a repository, which is user/name"),
    "cache": (HERE, {"local_files_only": True}, "the Hub is not asked, and the files are not in the cache"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said(hub, tmp_path, case):
    source, options, message = REFUSED[case]
    put(hub, moved(), tmp_path / "saved")
    base = net()
    before = list(base.state_dict())
    for act in (
        lambda: PeftConfig.from_pretrained(source, **options),
        lambda: PeftModel.from_pretrained(base, source, **options),
        lambda: AutoPeftModel.from_pretrained(source, **options),
    ):
        with pytest.raises(CheckpointError, match=message):
            act()
    assert list(base.state_dict()) == before


def test_a_repository_without_weights(hub, tmp_path):
    lora().save_pretrained(tmp_path / "saved")
    hub.repositories[HERE] = Repository()
    hub.repositories[HERE].add("main", files_of(tmp_path / "saved"))
    with pytest.raises(CheckpointError, match=r"fetching adapter_model.safetensors from me/mine .*no such file there"):
        PeftModel.from_pretrained(net(), HERE)


def test_a_hub_that_cannot_be_reached(use, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries again and again
    use("http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        CheckpointError, match=r"me/mine \(revision main\): the Hub was not reached \(.+\), and the files"
    ):
        PeftModel.from_pretrained(net(), HERE)
    with pytest.raises(CheckpointError, match=r"uploading to me/mine \(revision main\): ConnectError"):
        moved().push_to_hub(HERE, token=WRITER)


def test_the_file_is_what_was_committed(hub, tmp_path):
    model = moved()
    put(hub, model, tmp_path / "saved")
    read = PeftModel.from_pretrained(net(), HERE)
    mine, theirs = get_peft_model_state_dict(read), get_peft_model_state_dict(model)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
