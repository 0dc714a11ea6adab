"""What vLLM, SGLang, TGI and llama.cpp require of an adapter's directory, as rules on the files.

The rules are stated as these programs state them: vLLM's ``peft_helper``, SGLang's ``lora_config``, TGI's
``adapters/lora``, llama.cpp's ``convert_lora_to_gguf``.
"""

from __future__ import annotations

import json
import re

import pytest
from safetensors import safe_open

from adapterkit import LoraConfig, PeftModel, get_peft_model
from tests.parity.bases import llama
from tests.parity.helpers import add_noise

PORTABLE = {"plain": {}, "all_linear": {"target_modules": "all-linear"}, "regex": {"target_modules": r".*\.(q|v)_proj"}}
NOT_PORTABLE = {
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "bias": {"lora_bias": True},
    "rslora": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
}


def written(path, fields):
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"], **fields})
    base = llama()
    base.name_or_path = "someone/base"
    model = get_peft_model(base, config)
    add_noise(model)
    model.save_pretrained(path)
    return settings_and_sizes(path)


def settings_and_sizes(path):
    """An adapter's config, its tensors' shapes and types, and what the file says of itself."""
    settings = json.loads((path / "adapter_config.json").read_text())
    with safe_open(path / "adapter_model.safetensors", "pt") as file:
        tensors = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        sizes = {key: (tuple(t.get_shape()), t.get_dtype()) for key, t in tensors.items()}
        return settings, sizes, file.metadata()


def vllm(settings, sizes):
    """Refusals of vLLM."""
    problems = [key for key in ("r", "lora_alpha", "target_modules") if key not in settings]
    problems += ["modules_to_save"] if settings.get("modules_to_save") else []
    problems += ["use_dora"] if settings.get("use_dora") else []
    problems += ["rank above r"] if any(_rank(k, s) > settings["r"] for k, (s, _) in sizes.items()) else []
    names = r"base_model\.model\..+\.(lora_[AB]\.weight|lora_embedding_[AB])"
    return problems + [key for key in sizes if not re.fullmatch(names, key)]


def _rank(key, shape):
    return shape[0] if "lora_A" in key else 0


def sglang(settings, sizes):
    """What SGLang indexes, and what it computes wrongly."""
    problems = [key for key in ("target_modules", "r", "lora_alpha") if key not in settings]
    problems += ["target_modules is no list"] if not isinstance(settings.get("target_modules"), list) else []
    return problems + [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if settings.get(key)]


def tgi(settings, sizes):
    """What TGI parses, and the tensors it looks up."""
    wanted = ("base_model_name_or_path", "r", "target_modules", "fan_in_fan_out", "lora_alpha", "use_rslora")
    problems = [key for key in wanted if key not in settings]
    problems += ["base_model_name_or_path"] if not settings.get("base_model_name_or_path") else []
    pairs = {key.rpartition(".lora_")[0] for key in sizes if ".lora_" in key}
    lacking = [p for p in pairs if not {f"{p}.lora_A.weight", f"{p}.lora_B.weight"} <= sizes.keys()]
    return problems + lacking + (["use_dora"] if settings.get("use_dora") else [])


def llama_cpp(settings, sizes):
    """What llama.cpp's converter exits on, and what it computes wrongly."""
    problems = [] if "lora_alpha" in settings and settings.get("base_model_name_or_path") else ["lora_alpha or base"]
    problems += [k for k in sizes if not k.endswith((".lora_A.weight", ".lora_B.weight", ".base_layer.weight"))]
    return problems + [key for key in ("use_rslora", "alpha_pattern") if settings.get(key)]


READERS = [vllm, sglang, tgi, llama_cpp]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", PORTABLE)
def test_every_server_takes_plain_lora(tmp_path, name, reader):
    settings, sizes, metadata = written(tmp_path, PORTABLE[name])
    assert reader(settings, sizes) == []
    assert metadata["format"] == "pt"
    assert len({dtype for _, dtype in sizes.values()}) == 1
    assert settings["inference_mode"] is True
    assert settings["modules_to_save"] is None


@pytest.mark.parametrize("name", NOT_PORTABLE)
def test_the_rules_tell_what_some_server_refuses(tmp_path, name):
    settings, sizes, _ = written(tmp_path, NOT_PORTABLE[name])
    assert any(reader(settings, sizes) for reader in READERS)


def test_targets_are_suffixes_of_the_tensors_names(tmp_path):
    settings, sizes, _ = written(tmp_path, {"target_modules": "all-linear"})
    modules = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in sizes}
    assert all(any(m == t or m.endswith(f".{t}") for t in settings["target_modules"]) for m in modules)
    assert all(any(m == t or m.endswith(f".{t}") for m in modules) for t in settings["target_modules"])
    assert "lm_head" not in settings["target_modules"]


def test_the_directory_is_three_files(tmp_path):
    written(tmp_path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert PeftModel.from_pretrained(llama(), tmp_path).active_adapter == "default"
