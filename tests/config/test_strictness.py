"""Nothing in a config is taken silently that would not be honoured."""

from __future__ import annotations

import json
import pickle

import pytest
from pydantic import ValidationError

from adapterkit import LoraConfig, PeftConfig, PeftType, PrefixTuningConfig, TaskType
from adapterkit.config.strict import summarize
from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.registry import methods


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 8}, r"rank\n  Extra inputs are not permitted"),
        ({"r": "8"}, "should be a valid integer"),
        ({"r": 8.5}, "should be a valid integer"),
        ({"r": None}, "should be a valid integer"),
        ({"r": True}, "should be a valid integer"),
        ({"r": 0}, "greater than 0"),
        ({"r": -1}, "greater than 0"),
        ({"lora_alpha": "16"}, "should be a valid"),
        ({"lora_alpha": 0}, "greater than 0"),
        ({"lora_alpha": -4}, "greater than 0"),
        ({"lora_alpha": float("nan")}, "greater than 0|finite"),
        ({"lora_alpha": float("inf")}, "finite"),
        ({"lora_dropout": -0.5}, "greater than or equal to 0"),
        ({"lora_dropout": 1.0}, "less than 1"),
        ({"lora_dropout": 2.0}, "less than 1"),
        ({"lora_dropout": "0.1"}, "should be a valid number"),
        ({"lora_dropout": float("nan")}, "finite|less than 1"),
        ({"bias": "foo"}, "'none', 'all' or 'lora_only'"),
        ({"bias": None}, "'none', 'all' or 'lora_only'"),
        ({"init_lora_weights": "gausian"}, "Input should be 'gaussian', 'olora', 'pissa'"),
        ({"init_lora_weights": "true"}, "init_lora_weights"),
        ({"init_lora_weights": 5}, "init_lora_weights"),
        ({"init_lora_weights": None}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_"}, "init_lora_weights"),
        ({"task_type": "FOO"}, "no task type 'FOO'"),
        ({"task_type": "SEQCLS"}, "no task type 'SEQCLS'; did you mean 'SEQ_CLS'"),
        ({"peft_type": "IA3"}, "'LORA'"),
        ({"use_rslora": "no"}, "should be a valid boolean"),
        ({"use_dora": "false"}, "should be a valid boolean"),
        ({"use_dora": 1}, "should be a valid boolean"),
        ({"target_modules": 5}, "target_modules"),
        ({"target_modules": [5]}, "target_modules"),
        ({"target_modules": "None"}, "the null value is spelled null"),
        ({"target_modules": "*proj"}, "not a regular expression: nothing to repeat"),
        ({"rank_pattern": {"*q": 4}}, "rank_pattern: .\\*q. is not a regular expression: nothing to repeat"),
        ({"modules_to_save": "classifier"}, "should be a valid list"),
        ({"rank_pattern": {"q": "2"}}, "rank_pattern.q"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern.q"),
        ({"alpha_pattern": {"q": -1}}, "alpha_pattern.q"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
        (
            {"layers_to_transform": [0], "target_modules": "all-linear"},
            "layers_to_transform needs target_modules as a list",
        ),
        ({"layers_to_transform": [0], "target_parameters": ["w"]}, "layers_to_transform would do nothing"),
        ({"layers_pattern": "h"}, "layers_pattern is set, but layers_to_transform is not"),
        ({"layers_to_transform": 0, "layers_pattern": "("}, "layers_pattern: '\\(' is not a regular expression"),
        ({"layers_to_transform": 0, "layers_pattern": ["h", "*"]}, "layers_pattern: '\\*' is not a regular expression"),
        ({"layer_replication": 3}, "layer_replication\n  Input should be a valid list"),
        ({"lora_bias": True, "use_dora": True}, "exclude each other"),
    ],
    ids=str,
)
def test_refused_on_construction(fields, message):
    with pytest.raises(ValidationError, match=message):
        LoraConfig(**fields)


@pytest.mark.parametrize(
    ("field", "value"), [("lora_aplha", 4), ("r", "x"), ("r", 0), ("target_modules", 5), ("lora_dropout", 1.0)]
)
def test_refused_on_assignment(field, value):
    config = LoraConfig()
    with pytest.raises((ValidationError, ValueError)):
        setattr(config, field, value)
    assert config == LoraConfig()


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"target_modules": ("q", "v")}, "target_modules", ["q", "v"]),
        ({"target_modules": {"v", "q"}}, "target_modules", ["q", "v"]),
        ({"target_modules": r".*q"}, "target_modules", r".*q"),
        ({"modules_to_save": ("head",)}, "modules_to_save", ["head"]),
        ({"layers_to_transform": range(2)}, "layers_to_transform", [0, 1]),
        ({"lora_alpha": 16}, "lora_alpha", 16),
        ({"lora_alpha": 1.5}, "lora_alpha", 1.5),
        ({"task_type": "seq_cls"}, "task_type", "SEQ_CLS"),
    ],
    ids=lambda value: repr(sorted(value)) if isinstance(value, dict) else repr(value),
)
def test_taken_as_meant(fields, field, expected):
    value = getattr(LoraConfig(**fields), field)
    assert value == expected or str(value).lower() == expected
    assert type(value) is type(expected) or field == "task_type"


IDLE = [
    ("lora", {"eva_config": {}}, {"init_lora_weights": "eva"}),
    ("lora", {"corda_config": {}}, {"init_lora_weights": "corda"}),
    ("lora", {"lora_ga_config": {}}, {"init_lora_weights": "lora_ga"}),
    ("lora", {"lora_ga_config": {"stable_gamma": 8, "scale": "unit"}, "init_lora_weights": "lora_ga"}, None),
    ("lora", {"eva_config": {"label_mask_value": 0, "use_label_mask": False}, "init_lora_weights": "eva"}, None),
    ("lora", {"qalora_group_size": 8}, {"use_qalora": True}),
    ("oft", {"eps": 0.1}, {"coft": True}),
    ("oft", {"num_cayley_neumann_terms": 7, "use_cayley_neumann": False}, {"use_cayley_neumann": True}),
    ("lokr", {"rank_dropout_scale": True}, {"rank_dropout": 0.1}),
    ("prompt_tuning", {"tokenizer_name_or_path": "x"}, {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "y"}),
    ("prompt_tuning", {"prompt_tuning_init_text": "x"}, {"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "y"}),
    (
        "multitask_prompt_tuning",
        {"prompt_tuning_init_state_dict_path": "x"},
        {"prompt_tuning_init": "ONLY_SOURCE_SHARED"},
    ),
    (
        "multitask_prompt_tuning",
        {"prompt_tuning_init_task": 1, "prompt_tuning_init_state_dict_path": "x"},
        {"prompt_tuning_init": "EXACT_SOURCE_TASK"},
    ),
]


@pytest.mark.parametrize(("method", "fields", "needed"), IDLE)
def test_what_would_do_nothing_is_refused_but_in_files(method, fields, needed):
    make = methods[method]
    fields = {**({"num_virtual_tokens": 2} if make(**make.example).is_prompt_learning else {}), **fields}
    with pytest.raises(ValidationError, match=r"would do nothing without|is for other starts"):
        make(**fields)
    assert make(**fields, inference_mode=True).to_dict()
    if needed is not None:
        make(**{**fields, **needed})


@pytest.mark.parametrize("name", methods)
def test_names_read_as_members_of_pefts_enumerations(name, tmp_path):
    def names(config):
        return [config.peft_type, config.task_type]

    config = methods[name](**methods[name].example, task_type=TaskType.CAUSAL_LM)
    config.save_pretrained(tmp_path)
    read = PeftConfig.from_pretrained(tmp_path)
    for each in (config, config.model_copy(deep=True), pickle.loads(pickle.dumps(config)), read):
        assert names(each) == [name.upper(), "CAUSAL_LM"] == [PeftType[name.upper()], TaskType.CAUSAL_LM]
        assert [named.value for named in names(each)] == [named.name for named in names(each)] == names(each)
    config.task_type = "SEQ_CLS"
    assert config.task_type.value == "SEQ_CLS"
    for plain in (*config.model_dump().values(), config.peft_type.value, *json.loads(config.to_json()).values()):
        assert type(plain) is not type(config.peft_type)
    assert methods[name](**methods[name].example).task_type is None


@pytest.mark.parametrize("tokens", [0, -1, None, "20"])
def test_prompts_have_tokens(tokens):
    with pytest.raises(ValidationError, match="num_virtual_tokens"):
        PrefixTuningConfig(num_virtual_tokens=tokens)
    with pytest.raises(ValidationError, match="num_virtual_tokens"):
        PrefixTuningConfig()


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            ({"peft_type": "LORRA"}, ConfigError, "no method named 'lorra'; did you mean 'lora'"),
            ({"r": 4}, ConfigError, "peft_type is missing"),
            ({"peft_type": 7}, ConfigError, "peft_type is missing"),
            ({"peft_type": "LORA", "rnak": 4}, ConfigError, "LoraConfig does not know rnak=4"),
            (
                {"peft_type": "LORA", "lora_aplha": 4},
                ConfigError,
                "does not know lora_aplha=4; did you mean 'lora_alpha'",
            ),
            ({"peft_type": "LORA", "r": "4"}, ConfigError, r"r: .* \(got '4'\)"),
            ({"peft_type": "ADALORA", "init_r": 4}, ConfigError, r"[^:]*: target_r=8 is more than init_r=4$"),
            ({"peft_type": "LORA", "r": "4", "bias": "x"}, ConfigError, r"r: (.|\n)*bias: "),
        ],
    )
    def test_refused(self, tmp_path, content, error, message):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(content))
        with pytest.raises(error, match=message) as caught:
            PeftConfig.from_pretrained(tmp_path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("", "cannot be read"), ("3", "found int")])
    def test_unreadable(self, tmp_path, text, message):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            PeftConfig.from_pretrained(tmp_path)

    def test_another_method_s_file_is_not_this_one_s(self, tmp_path):
        LoraConfig().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="this is a LORA config, not one for PrefixTuningConfig"):
            PrefixTuningConfig.from_pretrained(tmp_path)
        assert isinstance(PeftConfig.from_pretrained(tmp_path), LoraConfig)

    def test_files_are_the_same_on_every_run(self, tmp_path):
        for names in ({"q", "v", "k"}, ("k", "q", "v"), {"v", "k", "q"}):
            LoraConfig(target_modules=names).save_pretrained(tmp_path / str(len(list(tmp_path.iterdir()))))
        assert len({(path / "adapter_config.json").read_bytes() for path in tmp_path.iterdir()}) == 1

    def test_the_path_of_a_config_is_in_every_message(self, tmp_path):
        with pytest.raises(CheckpointError, match=f"{tmp_path} has no adapter_config.json"):
            PeftConfig.from_pretrained(tmp_path)

    def test_inert_keys_are_ignored_at_their_one_value(self):
        data = {**LoraConfig().to_dict(), "megatron_core": "megatron.core", "loftq_config": {}, "eva_config": None}
        assert LoraConfig.from_dict(data) == LoraConfig()
        with pytest.raises(ConfigError, match="megatron_core='other'"):
            LoraConfig.from_dict({**data, "megatron_core": "other"})


@pytest.mark.parametrize("name", sorted(methods))
def test_fields_of_every_method_are_described(name):
    config = methods[name]
    assert not [field for field, info in config.model_fields.items() if not info.description]
    assert config.__doc__


def test_a_summary_has_every_problem():
    with pytest.raises(ValidationError) as error:
        LoraConfig(r=0, bias="x", nope=1)
    assert summarize(error.value).count("(got ") == 3
