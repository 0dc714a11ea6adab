"""The files that are written are the library's, byte for byte, but for the order of their metadata."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from adapterkit.checkpoint.tensors import write_tensors

NAMES = (
    "int64",
    "float64",
    "float32",
    "int32",
    "bfloat16",
    "float16",
    "int16",
    "float8_e4m3fn",
    "int8",
    "uint8",
    "bool",
)
WIDE = torch.arange(12.0).reshape(3, 4)
STATES = {
    "every type": {f"{key}.{name}": torch.ones(3, 2).to(getattr(torch, name)) for name in NAMES for key in "ba"},
    "empty": {},
    "odd shapes": {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "ü": torch.ones(2), "one": torch.ones(1)},
    "odd sizes": {"bytes": torch.ones(3, dtype=torch.int8), "half": torch.ones(3).half(), "float": torch.ones(1)},
    "parameters": {"p": torch.nn.Parameter(WIDE)},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_bytes_are_those_of_the_library(state, tmp_path):
    write_tensors(tmp_path / "ours", state, {"format": "pt"})
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_views_and_shared_memory_are_written_out(tmp_path):
    state = {"all": WIDE, "again": WIDE, "turned": WIDE.T, "part": WIDE[:, 1:3], "expanded": WIDE[:1].expand(5, 4)}
    write_tensors(tmp_path / "file", state, {})
    read = load_file(tmp_path / "file")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("text", ["plain", 'a "quoted" \\ text', "two\nlines \x01", "größe"])
def test_metadata_are_in_the_order_of_their_names(text, tmp_path):
    metadata = {name: text + name for name in "dbca"}
    write_tensors(tmp_path / "file", {"a": WIDE}, metadata)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == metadata
    content = (tmp_path / "file").read_bytes()
    assert list(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]) == [*"abcd"]


def test_a_type_that_the_format_has_not_is_named(tmp_path):
    with pytest.raises(SafetensorError, match="complex128"):
        write_tensors(tmp_path / "file", {"a": WIDE.to(torch.complex128)}, {})
    assert not (tmp_path / "file").exists()


def test_tensors_without_values_are_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="meta"):
        write_tensors(tmp_path / "file", {"a": WIDE.to("meta")}, {})
