"""Saved configs that name what the model does not have: the tensors say what there is, a warning what there is not."""

from __future__ import annotations

import json

import pytest
import torch

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.errors import CheckpointError, TargetError
from tests.models import lora, net
from tests.parity.bases import IDS, llama
from tests.parity.helpers import peft, peft_model, quiet, run

FIELDS = {
    "target_modules": ["q_proj", "query", "v_proj"],
    "exclude_modules": ["nowhere"],
    "modules_to_save": ["lm_head", "classifier"],
    "rank_pattern": {"absent": 4},
}
TOLD = "modules_to_save: 'classifier'; target_modules: 'query'; exclude_modules: 'nowhere'; rank_pattern: 'absent'"


@pytest.fixture
def saved(tmp_path):
    """What PEFT wrote, which passes over names that match nothing, and what its model computes."""
    with quiet():
        theirs = peft_model(peft.LoraConfig(r=2, **FIELDS), llama())
        theirs.save_pretrained(tmp_path)
    return tmp_path, run(theirs.eval(), {"input_ids": IDS})


def change(directory, **fields):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_names_that_match_nothing_are_left_out(saved):
    directory, expected = saved
    with pytest.warns(UserWarning, match=f"{directory}: left out of .* in this model: {TOLD}"):
        model = PeftModel.from_pretrained(llama(), directory)
    torch.testing.assert_close(run(model, {"input_ids": IDS}), expected)
    with pytest.warns(UserWarning, match=TOLD):
        model.load_adapter(directory, "second")
    config = model.peft_config["second"]
    assert (config.target_modules, config.modules_to_save) == (["q_proj", "v_proj"], ["lm_head"])
    with pytest.raises(TargetError, match="'query' matches no module"):
        get_peft_model(llama(), LoraConfig(target_modules=FIELDS["target_modules"]))


def test_an_adapter_of_which_names_were_left_out_is_loaded_over_itself(tmp_path):
    made = get_peft_model(net(), lora(alpha_pattern={"layers.0.query": 5, "layers.1.query": 7}))
    made.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    patterns = config["alpha_pattern"]
    write = (tmp_path / "adapter_config.json").write_text
    write(json.dumps({**config, "alpha_pattern": {"layers.9.query": 4, **patterns}}))
    with pytest.warns(UserWarning, match=r"left out .* alpha_pattern: 'layers\.9\.query'"):
        model = PeftModel.from_pretrained(net(), tmp_path)
    model.load_adapter(tmp_path, "default")
    for other in ({**patterns, "layers.0.query": 6}, {"layers.9.query": 4}):
        write(json.dumps({**config, "alpha_pattern": other}))
        with pytest.raises(CheckpointError, match="another config than adapter 'default': alpha_pattern="):
            model.load_adapter(tmp_path, "default")


def test_a_tensor_of_what_is_not_there_is_refused(saved):
    directory, _ = saved
    change(directory, target_modules=["q_proj", "value"])
    with pytest.raises(CheckpointError, match=r"unexpected: .*v_proj"):
        PeftModel.from_pretrained(llama(), directory)


@pytest.mark.parametrize("targets", [["query", "value"], "encoder.*", ["q_proj", "role:nothing"]])
def test_a_config_of_which_nothing_is_left_is_refused(saved, targets):
    directory, _ = saved
    change(directory, target_modules=targets)
    base = llama()
    with pytest.raises(TargetError, match="target_modules: "):
        PeftModel.from_pretrained(base, directory)
    assert all(parameter.requires_grad for parameter in base.parameters())
