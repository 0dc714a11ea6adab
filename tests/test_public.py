"""The public names are there, and importing the package imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

import adapterkit
from tests.parity.helpers import peft

DOCUMENTED = [
    "PeftModel", "PeftModelForCausalLM", "PeftModelForFeatureExtraction", "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM", "PeftModelForSequenceClassification", "PeftModelForTokenClassification", "PeftMixedModel",
    "PeftConfig", "LoraConfig", "AdaLoraConfig", "IA3Config", "LoHaConfig", "LoKrConfig", "OFTConfig", "PolyConfig",
    "PrefixTuningConfig", "PromptTuningConfig", "PromptEncoderConfig", "MultitaskPromptTuningConfig",
    "TaskType", "PeftType", "get_peft_model", "get_peft_config", "inject_adapter_in_model",
    "get_peft_model_state_dict", "set_peft_model_state_dict", "load_peft_weights", "prepare_model_for_kbit_training",
    "cast_mixed_precision_params", "AutoPeftModel", "AutoPeftModelForCausalLM",
]  # fmt: skip


def modules_after(code: str) -> set[str]:
    """The top-level modules that a new process has imported after ``code``."""
    script = f"{code}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", adapterkit.__all__)
def test_every_name_is_there(name):
    assert getattr(adapterkit, name) is not None
    assert name in dir(adapterkit)


def test_the_documented_names_are_public():
    assert set(DOCUMENTED) <= set(adapterkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'LorraConfig'"):
        adapterkit.LorraConfig


@pytest.mark.parametrize(
    "code",
    [
        "import adapterkit",
        "from adapterkit import LoraConfig, TaskType; LoraConfig(r=4, task_type=TaskType.SEQ_CLS)",
        "from adapterkit import PeftConfig; PeftConfig.from_dict({'peft_type': 'LORA', 'r': 4})",
        "import adapterkit.cli, adapterkit.errors, adapterkit.architectures",
    ],
)
def test_no_torch_before_it_is_needed(code):
    assert not {"torch", "transformers", "numpy", "datasets", "sklearn", "matplotlib"} & modules_after(code)


@pytest.mark.parametrize(
    ("values", "config", "field"),
    [
        ("PromptTuningInit", "PromptTuningConfig", "prompt_tuning_init"),
        ("MultitaskPromptTuningInit", "MultitaskPromptTuningConfig", "prompt_tuning_init"),
        ("PromptEncoderReparameterizationType", "PromptEncoderConfig", "encoder_reparameterization_type"),
    ],
)
def test_values_as_enumerations_are_those_of_the_field(values, config, field):
    kind = getattr(adapterkit, config)
    members = list(getattr(adapterkit, values))
    assert set(members) == set(get_args(kind.model_fields[field].annotation))
    default = getattr(adapterkit, values)(kind.model_fields[field].default)
    made = kind(num_virtual_tokens=2, **{field: default})
    assert getattr(made, field) == default
    assert {member.value for member in getattr(peft, values)} == {member.value for member in members}


def test_enumerations_are_strings():
    assert adapterkit.TaskType.SEQ_CLS == "SEQ_CLS"
    assert adapterkit.PeftType.LORA == "LORA"
    config = adapterkit.LoraConfig(task_type=adapterkit.TaskType.CAUSAL_LM, peft_type=adapterkit.PeftType.LORA)
    assert config.to_dict()["task_type"] == "CAUSAL_LM"
