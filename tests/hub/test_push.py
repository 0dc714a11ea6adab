"""Adapters pushed to the Hub with the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from adapterkit import PeftConfig, PeftMixedModel, PeftModel, get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.errors import CheckpointError, StateError
from tests import loopback
from tests.loopback import READER, WRITER, Repository
from tests.models import batch, lora, moved, net, pair

# The client's own: it sends a file to the LFS server by an argument that its HTTP library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

HERE = "me/mine"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def content(hub, branch="main", name=HERE):
    repository = hub.repositories[name]
    return repository.commits[repository.branches[branch]]


def test_a_repository_is_made_and_filled(hub):
    model = moved()
    commit = model.push_to_hub(HERE, token=WRITER)
    assert commit.oid == hub.repositories[HERE].branches["main"]
    files = content(hub)
    assert files.keys() == FILES
    tensors, expected = load(files["adapter_model.safetensors"]), get_peft_model_state_dict(model)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in tensors)
    assert json.loads(files["adapter_config.json"])["peft_type"] == "LORA"
    assert torch.equal(PeftModel.from_pretrained(net(), HERE)(batch()), model(batch()))


def test_a_config_alone(hub):
    lora(r=5).push_to_hub(HERE, token=WRITER)
    assert content(hub).keys() == {"adapter_config.json"}
    assert PeftConfig.from_pretrained(HERE).r == 5
    moved().push_to_hub(HERE, token=WRITER)
    lora(r=6).push_to_hub(HERE, token=WRITER, commit_message="another rank")
    assert content(hub).keys() == FILES
    assert PeftConfig.from_pretrained(HERE).r == 6


def test_large_files_go_through_lfs(hub):
    moved().push_to_hub(HERE, token=WRITER)
    assert content(hub)["adapter_model.safetensors"] in hub.objects.values()


def test_a_private_repository(hub):
    moved().push_to_hub(HERE, token=WRITER, private=True)
    assert hub.repositories[HERE].private


def test_a_branch_is_made(hub):
    moved().push_to_hub(HERE, token=WRITER)
    other = moved(r=5)
    other.push_to_hub(HERE, token=WRITER, revision="next")
    assert content(hub)["adapter_config.json"] != content(hub, "next")["adapter_config.json"]
    other.push_to_hub(HERE, token=WRITER, revision="next")
    assert torch.equal(PeftModel.from_pretrained(net(), HERE, revision="next")(batch()), other(batch()))


def test_what_a_person_wrote_on_the_card_stays(hub):
    hub.repositories[HERE] = Repository()
    hub.repositories[HERE].add("main", {"README.md": b"---\nlicense: mit\n---\n# Mine\n\nTold at length.\n"})
    moved().push_to_hub(HERE, token=WRITER)
    card = content(hub)["README.md"].decode()
    assert "license: mit" in card
    assert "library_name: peft" in card
    assert "# Mine\n\nTold at length.\n" in card


def test_options_are_those_of_saving(hub):
    model = pair()
    model.push_to_hub(HERE, token=WRITER, selected_adapters=["two"], safe_serialization=False)
    assert content(hub).keys() == {"README.md", "two/adapter_config.json", "two/adapter_model.bin"}
    with pytest.raises(StateError, match="no adapter named 'three'"):
        model.push_to_hub(HERE, token=WRITER, selected_adapters=["three"])


def test_a_mix_goes_and_comes(hub):
    model = get_peft_model(net(), lora(), "one", mixed=True)
    model.push_to_hub(HERE, token=WRITER)
    assert "mixed_adapters.json" in content(hub)
    assert PeftMixedModel.from_pretrained(net(), HERE).active_adapters == ["one"]


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "does not accept the token"), (READER, "right to read there, and to write"), (False, "wants one")],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_token_that_may_not_write(hub, token, message, there):
    if there:
        hub.repositories[HERE] = Repository()
    with pytest.raises(CheckpointError, match=rf"uploading to me/mine \(revision main\): .*{message}"):
        moved().push_to_hub(HERE, token=token)
    assert not there or not content(hub)


def test_an_upload_that_breaks_off(hub, monkeypatch):
    monkeypatch.setattr(loopback.Hub, "keep", lambda *_: (_ for _ in ()).throw(loopback.RefusedError(507, "disk full")))
    with pytest.raises(CheckpointError, match=r"uploading to me/mine \(revision main\): .*507"):
        moved().push_to_hub(HERE, token=WRITER)
    assert not content(hub)


PROGRAM = """
import torch
import adapterkit, peft
from tests.models import batch, move, net

for writer, reader in ((adapterkit, peft), (peft, adapterkit)):
    model = writer.get_peft_model(net(), writer.LoraConfig(r=2, target_modules=["query", "value"]))
    move(model)
    model.eval().push_to_hub(f"me/{writer.__name__}")
    read = reader.PeftModel.from_pretrained(net(), f"me/{writer.__name__}").eval()
    torch.testing.assert_close(read(batch()), model(batch()))
    print(writer.__name__, "to", reader.__name__)
"""


def test_what_one_library_pushes_the_other_pulls(tmp_path):
    """In a process of its own, where nothing but the environment says which Hub it is."""
    with loopback.running() as hub:
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "adapterkit to peft\npeft to adapterkit\n", done.stderr
