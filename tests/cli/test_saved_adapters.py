"""``inspect``, ``diff`` and ``verify``: what they say, and what they return."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from adapterkit import LoraConfig, get_peft_model
from adapterkit.config.run import ModelConfig
from adapterkit.registry import tasks
from adapterkit.train import load_base
from tests.commandline import command, in_new_process
from tests.models import moved
from tests.ondisk.damage import change, pickled, rewrite

KEY = "base_model.model.layers.0.query.lora_B.weight"


@pytest.fixture
def two(saved, tmp_path):
    """The paths of an adapter and of a copy."""
    other = tmp_path / "copy"
    other.mkdir()
    for path in saved[0].iterdir():
        if path.is_file():
            shutil.copy(path, other)
    return str(saved[0]), str(other)


VERBS = [["inspect"], ["inspect", "--tensors"], ["inspect", "--json"], ["verify"], ["diff"]]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_neither_torch_nor_hydra_is_imported(two, tmp_path, verb):
    places = list(two) if verb == ["diff"] else [two[0]]
    source = f"import sys; from adapterkit.cli import main; code = main({[*verb, *places]!r}); "
    done = in_new_process("-c", source + "sys.exit(code or 10 * ('torch' in sys.modules))", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_inspect_tells_what_an_adapter_is(saved, capsys):
    change(
        saved[0],
        lora_alpha=3,
        use_rslora=True,
        base_model_name_or_path="some/base",
        revision="abc",
        task_type="SEQ_CLS",
    )
    told = command(capsys, "inspect", str(saved[0]))
    assert told.code == 0
    for line in (
        "method          LORA",
        "task            SEQ_CLS",
        "base            some/base at abc",
        "made on         Net, weights float32 ",
        "r               2",
        "lora_alpha      3",
        "use_rslora      true",
        'target_modules  ["query", "value"]',
        "tensors         8 in adapter_model.safetensors",
        "parameters      128 of float32",
        "layers.*.query.lora_A.weight  2 x 8  float32  2       32",
    ):
        assert any(each.startswith(line) for each in told.out.splitlines()), (line, told.out)
    assert "init_lora_weights" not in told.out


def test_inspect_lists_tensors_and_norms(saved, capsys):
    norm = f"{saved[1].state_dict()['base_model.model.layers.0.query.adapters.default.lora_B.weight'].norm():.4g}"
    listed = command(capsys, "inspect", str(saved[0]), "--norms").out.splitlines()
    assert [line.split()[-1] for line in listed if line.startswith(KEY)] == [norm]
    assert not any(line.startswith("layers.*") for line in listed)
    content = json.loads(command(capsys, "inspect", str(saved[0]), "--norms", "--json").out)
    assert content["tensors"][KEY]["shape"] == [8, 2]
    assert content["tensors"][KEY]["norm"] == pytest.approx(float(norm), rel=1e-3)
    assert content["settings"]["peft_type"] == "LORA"
    plain = json.loads(command(capsys, "inspect", str(saved[0]), "--json").out)
    assert plain["tensors"][KEY] == {"shape": [8, 2], "dtype": "float32"}
    assert (plain["parameters"], plain["bytes"]) == (128, 512)


def test_inspect_shows_what_is_of_no_method_here(saved, capsys):
    change(saved[0], peft_type="NOSUCH", strength=3)
    told = command(capsys, "inspect", str(saved[0]))
    assert told.code == 0
    assert "no method named 'nosuch'" in told.out
    assert any(line.split() == ["strength", "3"] for line in told.out.splitlines())


@pytest.mark.parametrize("verb", ["inspect", "diff", "verify"])
def test_a_path_that_is_not_there_is_a_mistake(saved, verb, capsys):
    told = command(capsys, verb, *([str(saved[0])] if verb == "diff" else []), "./nowhere")
    assert (told.code, told.out) == (2, "")
    assert told.err == "adapterkit: ./nowhere: no such file or directory\n"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["inspect", ".", "--jsn"], "inspect has no flag '--jsn'; did you mean '--json'?"),
        (["verify", ".", "--valus"], "verify has no flag '--valus'; did you mean '--values'?"),
        (["diff", "."], "the following arguments are required: B"),
        (["inspect"], "the following arguments are required: DIR"),
        (["inspect", ".", "other"], "inspect takes no 'other'"),
    ],
)
def test_other_mistakes(argv, word, capsys):
    told = command(capsys, *argv)
    assert (told.code, told.out) == (2, "")
    assert word in told.err


@pytest.mark.parametrize("verb", ["inspect", "diff"])
def test_what_cannot_be_read_is_a_fault(two, verb, capsys, tmp_path):
    path = tmp_path / "copy" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    told = command(capsys, verb, *(two if verb == "diff" else two[1:]))
    assert (told.code, told.out) == (1, "")
    assert "is cut off" in told.err


def test_verify_says_whether_an_adapter_is_sound(saved, capsys):
    told = command(capsys, "verify", str(saved[0]), "--values")
    assert (told.code, told.out) == (0, "ok: LORA, 8 tensors\n")
    rewrite(saved[0], lambda t: t[KEY].fill_(torch.nan))
    assert command(capsys, "verify", str(saved[0])).code == 0
    told = command(capsys, "verify", str(saved[0]), "--values")
    assert told.code == 4
    assert f"! {KEY} has 16 values that are NaN or infinite" in told.out
    rewrite(saved[0], lambda t: t.pop(KEY))
    told = command(capsys, "verify", str(saved[0]), "--json")
    assert told.code == 4
    assert json.loads(told.out)["problems"] == ["layers.0.query.lora_B.weight is missing"]


@pytest.mark.parametrize("verb", ["inspect", "diff", "verify", "export", "merge"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_adapter_is_a_mistake(tmp_path, verb, kind, capsys):
    place = tmp_path / "there"
    place.mkdir() if kind == "folder" else place.write_text("{}")
    beside = {"diff": [str(place)], "export": ["--check"], "merge": ["--to", str(tmp_path / "out")]}
    told = command(capsys, verb, str(place), *beside.get(verb, []))
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"adapterkit: {place} is neither an adapter")
    assert list(tmp_path.iterdir()) == [place]


def test_verify_of_half_an_adapter(saved, capsys):
    (saved[0] / "adapter_config.json").unlink()
    told = command(capsys, "verify", str(saved[0]))
    assert (told.code, "has no adapter_config.json" in told.out) == (4, True)


def test_verify_takes_a_pickled_file(saved, capsys):
    pickled(saved[0])
    assert command(capsys, "verify", str(saved[0])).out == "ok: LORA, 8 tensors\n"
    (saved[0] / "adapter_model.bin").write_bytes(b"not a pickle")
    told = command(capsys, "verify", str(saved[0]))
    assert (told.code, "is not a file of tensors" in told.out) == (4, True)


def test_verify_matches_a_base(tmp_path, capsys):
    base = load_base(ModelConfig(name_or_path="builtin:bert"), tasks["seq_cls"](name="seq_cls"), num_labels=5)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    get_peft_model(base, config).save_pretrained(tmp_path)
    assert command(capsys, "verify", str(tmp_path), "--base", "builtin:bert").code == 0
    told = command(capsys, "verify", str(tmp_path), "--base", "builtin:llama")
    assert told.code == 4
    assert "target_modules: 'query' matches no module" in told.out
    change(tmp_path, task_type=None)
    told = command(capsys, "verify", str(tmp_path), "--base", "builtin:bert", "--task", "seq_cls")
    assert (told.code, told.out) == (0, "ok: LORA, 6 tensors\n")
    told = command(capsys, "verify", str(tmp_path), "--base", "builtin:bert", "--task", "seq_cl")
    assert (told.code, told.out) == (2, "")
    assert "no task named 'seq_cl'; did you mean 'seq_cls'?" in told.err
    change(tmp_path, task_type="SEQ_CLS")
    rewrite(tmp_path, lambda t: t.update({k: torch.ones(2, 9) for k in t if "layer.0" in k and "lora_A" in k}))
    assert command(capsys, "verify", str(tmp_path)).code == 0
    told = command(capsys, "verify", str(tmp_path), "--base", "builtin:bert")
    assert told.code == 4
    assert "is (2, 9), expected (2, 128)" in told.out


def test_an_adapter_is_equal_to_its_copy(two, capsys):
    assert command(capsys, "diff", *two).out == "equal: settings and 8 tensors, values not compared\n"
    told = command(capsys, "diff", *two, "--values")
    assert (told.code, told.out) == (0, "equal: settings and 8 tensors\n")


def test_what_means_the_same_does_not_differ(two, capsys, tmp_path):
    settings = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    less = {key: value for key, value in settings.items() if key not in ("use_dora", "bias", "eva_config")}
    less |= {"target_modules": ["value", "query"], "megatron_core": "megatron.core"}
    (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps(less))
    assert command(capsys, "diff", *two).code == 0


def test_diff_names_settings_tensors_and_values(two, capsys, tmp_path):
    def alter(tensors):
        tensors[KEY] += 0.25
        tensors["base_model.model.layers.1.query.lora_B.weight"] -= 0.5
        tensors["base_model.model.layers.1.value.lora_A.weight"] = torch.ones(3, 8)
        tensors["extra"] = tensors.pop("base_model.model.layers.1.value.lora_B.weight").half()

    rewrite(tmp_path / "copy", alter)
    change(tmp_path / "copy", lora_alpha=16)
    told = command(capsys, "diff", *two, "--values")
    assert told.code == 4
    rows = [line.split() for line in told.out.splitlines()]
    assert ["lora_alpha", "8", "16"] in rows
    assert "layers.1.value.lora_A.weight".replace("1", "*") in told.out
    assert ["layers.*.value.lora_A.weight", "2", "x", "8", "float32", "3", "x", "8", "float32", "1"] in rows
    assert ["extra", "-", "8", "x", "2", "float16", "1"] in rows
    assert ["layers.*.query.lora_B.weight", "0.5", "2"] in rows
    content = json.loads(command(capsys, "diff", *two, "--values", "--json").out)
    assert content["settings"] == {"lora_alpha": [8, 16]}
    assert content["values"][KEY] == pytest.approx(0.25)
    assert content["tensors"]["extra"] == [None, {"shape": [8, 2], "dtype": "float16"}]
    assert not command(capsys, "diff", *two).out.count("largest difference")


def test_a_value_that_one_alone_has_not_differs(two, capsys, tmp_path):
    rewrite(tmp_path / "copy", lambda t: t[KEY].fill_(torch.nan))
    told = command(capsys, "diff", *two, "--values")
    assert told.code == 4
    assert "layers.*.query.lora_B.weight  inf" in told.out
    rewrite(tmp_path, lambda t: t[KEY].fill_(torch.nan))
    rewrite(tmp_path / "copy", lambda t: None)
    assert command(capsys, "diff", *two, "--values").code == 0


def test_another_base_is_a_difference(tmp_path, capsys):
    one, other = moved(), moved()
    one.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        other.base_model.model.layers[0].query.base_layer.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    told = command(capsys, "diff", str(tmp_path / "one"), str(tmp_path / "other"))
    assert told.code == 4
    assert [line.split()[0] for line in told.out.splitlines()] == ["base", "weights"]
