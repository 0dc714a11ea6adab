"""The numbers of trained parameters that a public comparison of methods publishes, on a base of 3.2 billion, all of it
on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapterkit import PeftConfig, get_peft_model
from adapterkit.errors import ConfigError
from adapterkit.registry import methods

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_counts.json").read_text())
ROWS = {row["experiment"]: row for row in PUBLISHED["rows"] if row["config"]["peft_type"].lower() in methods}
REFUSED = {  # variants that are not implemented, and the key that says so
    "lora/llama-3.2-3B-rank14-target-mlp-bdlora": "use_bdlora",
    "lora/llama-3.2-3B-rank32-mica": "init_lora_weights",
}


def config_of(row):
    return PeftConfig.from_dict({**row["config"], "task_type": "CAUSAL_LM"}, source=row["experiment"])


@pytest.mark.parametrize("name", [name for name in ROWS if name not in REFUSED])
def test_published_count(name):
    row = ROWS[name]
    config = config_of(row)
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**PUBLISHED["base_model"])), config)
    assert model.get_nb_trainable_parameters()[0] == row["count"]
    assert not any(parameter.device.type != "meta" for parameter in model.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_that_is_not_known_is_refused_by_its_key(name):
    with pytest.raises(ConfigError, match=REFUSED[name]):
        config_of(ROWS[name])
