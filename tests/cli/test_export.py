"""``export``: what it writes computes what the adapter did, in PEFT, and every program's rules take it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from adapterkit import BdLoraConfig, LoraConfig, get_peft_model
from adapterkit.checkpoint.files import write_adapter
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.ondisk.servers import SERVERS, faults
from adapterkit.registry import methods
from tests.commandline import command, in_new_process
from tests.interchange.test_serving import READERS, settings_and_sizes
from tests.ondisk.damage import change, pickled, rewrite
from tests.parity.bases import IDS, llama
from tests.parity.helpers import add_noise, peft, quiet

BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)
FOLDED = {
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 7}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3}, "lora_alpha": 1},
    "all": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5.5}},
    "embedding": {"use_rslora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "blocks": {"use_bdlora": BLOCKS, "use_rslora": True},
    "regex": {"target_modules": r".*\.1\.self_attn\.(q|v)_proj", "use_rslora": True},
}
REFUSED = {
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "use_dora": {"use_dora": True},
}


def written(directory, **fields):
    """The directory of an adapter that is away from its start."""
    kind = methods[fields.pop("method", "lora")]
    usual = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]} | (
        {"r": 4} if kind is LoraConfig else {}
    )
    model = get_peft_model(llama(), kind(**(usual | fields)))
    add_noise(model)
    model.save_pretrained(directory)
    return str(directory)


def computed(directory):
    """The outputs of the base with an adapter, by PEFT."""
    with quiet(), torch.no_grad():
        return peft.PeftModel.from_pretrained(llama(), directory).eval()(input_ids=IDS).logits


def export(capsys, directory, *argv):
    return command(capsys, "export", str(directory), *argv)


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_folded_computes_the_same(tmp_path, capsys, name):
    source, out = written(tmp_path / "in", **FOLDED[name]), tmp_path / "out"
    programs = "vllm,llamacpp,peft" if name == "embedding" else ",".join(SERVERS)
    told = export(capsys, source, "--for", programs, "--to", str(out))
    assert (told.code, told.err) == (0, "")
    assert f"wrote {out} for vLLM" in told.out
    torch.testing.assert_close(computed(out), computed(source), atol=1e-6, rtol=1e-5)
    assert (computed(out) - llama()(input_ids=IDS).logits).abs().max() > 1e-3
    assert export(capsys, out, "--check", "--for", programs).code == 0


@pytest.mark.parametrize("name", ["all", "regex"])
def test_what_is_written_keeps_to_the_rules_as_the_programs_state_them(tmp_path, capsys, name):
    source, out = written(tmp_path / "in", **FOLDED[name]), tmp_path / "out"
    change(tmp_path / "in", base_model_name_or_path="some/base")
    export(capsys, source, "--for", "vllm,sglang,llamacpp,tgi", "--to", str(out))
    settings, sizes, metadata = settings_and_sizes(out)
    assert [reader(settings, sizes) for reader in READERS] == [[]] * len(READERS)
    assert metadata["format"] == "pt"


def test_factors_stay_as_they_are_where_a_whole_alpha_says_it(tmp_path, capsys):
    source = written(tmp_path / "in", use_rslora=True, lora_alpha=6)
    export(capsys, source, "--for", "sglang", "--to", str(tmp_path / "out"))
    settings, *_ = settings_and_sizes(tmp_path / "out")
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (4, 12, False)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_scales_go_into_the_second_factor_in_its_type(tmp_path, capsys):
    source = written(tmp_path / "in", use_rslora=True, r=5, lora_alpha=1)
    rewrite(tmp_path / "in", lambda t: t.update({key: tensor.bfloat16() for key, tensor in t.items()}))
    export(capsys, source, "--for", "sglang", "--to", str(tmp_path / "out"))
    assert AdapterFiles(tmp_path / "out").config.lora_alpha == 5
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    for key, tensor in before.items():
        expected = (tensor.double() / math.sqrt(5)).bfloat16() if "lora_B" in key else tensor
        assert torch.equal(after[key], expected)


def test_groups_of_inputs_are_spread(tmp_path, capsys):
    """No PEFT here: QA-LoRA needs a quantised base."""
    config = LoraConfig(r=2, target_modules=["q_proj"], use_qalora=True, qalora_group_size=4, lora_alpha=6)
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    a, b, x = torch.randn(2, 4), torch.randn(8, 2), torch.randn(3, 16)
    write_adapter(tmp_path / "in", {f"{stem}lora_A.weight": a, f"{stem}lora_B.weight": b}, config.to_json())
    assert export(capsys, tmp_path / "in", "--for", "vllm", "--to", str(tmp_path / "out")).code == 0
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    pooled = x.reshape(3, 4, 4).mean(-1) * 4
    expected = 3 * pooled @ a.T @ b.T
    torch.testing.assert_close(3 * x @ found[f"{stem}lora_A.weight"].T @ found[f"{stem}lora_B.weight"].T, expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_told_and_not_written(tmp_path, capsys, name):
    source = written(tmp_path / "in", **REFUSED[name])
    told = export(capsys, source, "--for", "vllm", "--to", str(tmp_path / "out"))
    assert (told.code, told.out) == (4, "")
    assert name in told.err
    assert ("--base and --rank" in told.err) == (name in ("use_dora", "init_lora_weights"))
    assert not (tmp_path / "out").exists()
    assert export(capsys, source, "--check", "--for", "peft").out == "peft: ok\n"


def test_modules_to_save_without_tensors_are_left_out(tmp_path, capsys):
    source = written(tmp_path / "in")
    change(tmp_path / "in", modules_to_save=[])
    assert export(capsys, source, "--check", "--for", "vllm").code == 0
    export(capsys, source, "--for", "vllm", "--to", str(tmp_path / "out"))
    assert AdapterFiles(tmp_path / "out").settings["modules_to_save"] is None


@pytest.mark.parametrize("method", ["ia3", "loha", "adalora"])
def test_another_method_becomes_lora_with_its_base(tmp_path, capsys, monkeypatch, method):
    fields = {"feedforward_modules": ["down_proj"], "target_modules": ["down_proj"]} if method == "ia3" else {}
    fields |= {"total_step": 10} if method == "adalora" else {}
    source = written(tmp_path / "in", method=method, **fields)
    alone = export(capsys, source, "--for", "vllm", "--to", str(tmp_path / "out"))
    assert (alone.code, "export with --base and --rank" in alone.err) == (4, True)
    monkeypatch.setattr("adapterkit.train.standalone.load_base", lambda *_, **__: llama())
    how = ("--to", str(tmp_path / "out"), "--base", "it", "--rank", "1.0")
    told = export(capsys, source, "--for", "vllm,llamacpp", *how)
    assert (told.code, told.err) == (0, "")
    assert "converted to LoRA" in told.out
    assert AdapterFiles(tmp_path / "out").config.peft_type == "LORA"
    torch.testing.assert_close(computed(tmp_path / "out"), computed(source), atol=1e-5, rtol=1e-4)


def test_a_conversion_on_another_base_is_refused(tmp_path, capsys, monkeypatch):
    source = written(tmp_path / "in", use_dora=True)
    other = llama()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.add_(1)
    monkeypatch.setattr("adapterkit.train.standalone.load_base", lambda *_, **__: other)
    told = export(capsys, source, "--for", "vllm", "--to", str(tmp_path / "out"), "--base", "it", "--rank", "2")
    assert told.code == 4
    assert "a base with other weights" in told.err


def test_prompts_become_nothing_else(tmp_path, capsys):
    model = get_peft_model(llama(), methods["prompt_tuning"](task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.save_pretrained(tmp_path)
    told = export(capsys, tmp_path, "--check", "--for", "vllm,peft")
    assert told.code == 4
    assert told.out.splitlines()[1:] == [
        "  ! vLLM takes LORA only, and this is PROMPT_TUNING",
        "    no program does: what it does is no change of weights",
        "peft: ok",
    ]


def test_a_method_of_nobody_elses_is_not_pefts(saved):
    config = AdapterFiles(saved[0]).config.model_copy(update={"peft_type": "ACME"})
    assert [fault.why for fault in faults(SERVERS["peft"], config, {})] == [
        "PEFT 0.21.2 takes methods of its own only, and this is ACME"
    ]


def test_pefts_methods_are_those_of_the_installed_peft():
    assert SERVERS["peft"].methods == {str(kind.value) for kind in peft.PeftType}


def test_checking_imports_no_torch(tmp_path):
    source = written(tmp_path / "in", use_rslora=True)
    code = f"import sys; from adapterkit.cli import main; code = main(['export', {source!r}, '--check']); "
    done = in_new_process("-c", code + "sys.exit(code + 10 * ('torch' in sys.modules))", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (4, "")


def test_checks_as_json_and_for_whom(tmp_path, capsys):
    source = written(tmp_path / "in", use_rslora=True, r=20)
    told = export(capsys, source, "--check", "--json")
    assert told.code == 4
    found = json.loads(told.out)
    assert list(found) == list(SERVERS)
    assert found["vllm"] == {"faults": [], "notes": ["rank 20: start vLLM with --max-lora-rank 32"]}
    assert found["sglang"]["faults"][0]["cure"] == "export folds it into the factors"
    assert any("names no base" in note for note in found["llamacpp"]["notes"])
    assert export(capsys, source, "--check", "--for", "tgi, peft").code == 0


def test_a_rank_that_no_option_reaches_is_noted(tmp_path, capsys):
    source = written(tmp_path / "in", r=600)
    assert "rank 600 is above 512" in export(capsys, source, "--check", "--for", "vllm").out


def test_other_layers_and_files_are_told(tmp_path, capsys):
    source = written(tmp_path / "in", target_modules=["embed_tokens"])
    told = export(capsys, source, "--check", "--for", "tgi,vllm")
    assert "TGI takes no tensor base_model.model.model.embed_tokens." in told.out
    assert ", and 2 more like it" in told.out
    assert "vllm: ok" in told.out
    source = written(tmp_path / "other", target_modules=r".*q_proj")
    pickled(tmp_path / "other")
    told = export(capsys, source, "--check", "--for", "tgi,sglang")
    assert "TGI reads safetensors only, not adapter_model.bin" in told.out
    assert export(capsys, source, "--for", "tgi,sglang", "--to", str(tmp_path / "out")).code == 0
    assert export(capsys, tmp_path / "out", "--check", "--for", "tgi,sglang").code == 0
    assert isinstance(AdapterFiles(tmp_path / "out").settings["target_modules"], list)


def test_keys_that_a_program_needs_are_written(tmp_path, capsys):
    source = written(tmp_path / "in")
    settings = {k: v for k, v in AdapterFiles(tmp_path / "in").settings.items() if k not in ("lora_alpha", "bias")}
    (tmp_path / "in" / "adapter_config.json").write_text(json.dumps(settings))
    told = export(capsys, source, "--check", "--for", "vllm")
    assert (told.code, "lora_alpha is not in the config\n    export writes it so" in told.out) == (4, True)
    export(capsys, source, "--for", "vllm", "--to", str(tmp_path / "out"))
    assert export(capsys, tmp_path / "out", "--check", "--for", "vllm").code == 0


def test_card_and_tokenizer_go_along_and_nothing_else(tmp_path, capsys):
    source = written(tmp_path / "in")
    for name in ("tokenizer.json", "optimizer.pt"):
        (tmp_path / "in" / name).write_text("{}")
    export(capsys, source, "--for", "vllm", "--to", str(tmp_path / "out"))
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert AdapterFiles(tmp_path / "out").base == AdapterFiles(tmp_path / "in").base


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ((), "--for PROGRAM and --to OUT, or --check"),
        (("--for", "vllm"), "--for PROGRAM and --to OUT, or --check"),
        (("--to", "out"), "--for PROGRAM and --to OUT, or --check"),
        (("--for", "vlm", "--to", "out"), "no rules for 'vlm'; did you mean 'vllm'? Programs: vllm, sglang"),
        (("--for", "vllm", "--to", "."), "give a directory of its own"),
        (("--for", "vllm", "--to", "adapter_config.json"), "give a directory of its own"),
        (("--for", "vllm", "--to", "out", "--base", "x"), "--base and --rank together"),
        (("--for", "vllm", "--to", "out", "--base", "x", "--rank", "x"), "argument --rank: invalid rank value: 'x'"),
        (("--chek",), "export has no flag '--chek'; did you mean '--check'?"),
    ],
)
def test_mistakes(saved, argv, word, capsys, monkeypatch):
    monkeypatch.chdir(saved[0])
    told = export(capsys, ".", *argv)
    assert (told.code, told.out) == (2, "")
    assert word in told.err
    assert not (saved[0] / "out").exists()


def test_an_adapter_that_is_not_sound_is_not_exported(tmp_path, capsys):
    source = written(tmp_path / "in", r=3)
    change(tmp_path / "in", r=2)
    for argv in (("--check",), ("--for", "vllm", "--to", str(tmp_path / "out"))):
        told = export(capsys, source, *argv)
        assert (told.code, told.out) == (4, "")
        assert "is not sound" in told.err
