"""A header says what the tensors are, and a file that does not hold them is told for what it is."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adapterkit.errors import CheckpointError
from adapterkit.ondisk.header import Entry, read_header

NAME = "adapter_model.safetensors"
_HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
GAP = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(3)
"""A file with a byte between its tensors."""


def test_entries_are_those_of_the_tensors(saved):
    directory, _ = saved
    header = read_header(directory / NAME)
    tensors = load_file(directory / NAME)
    assert {key: entry.shape for key, entry in header.tensors.items()} == {
        k: tuple(t.shape) for k, t in tensors.items()
    }
    assert all(
        entry == Entry("float32", tuple(t.shape), t.nbytes)
        for (k, t) in tensors.items()
        for entry in [header.tensors[k]]
    )
    assert header.metadata["format"] == "pt"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_types_have_torchs_names(tmp_path, dtype):
    save_file({"x": torch.ones(2, 3, dtype=dtype)}, tmp_path / "x.safetensors")
    entry = read_header(tmp_path / "x.safetensors").tensors["x"]
    assert (f"torch.{entry.dtype}", entry.numel, entry.is_floating) == (str(dtype), 6, dtype.is_floating_point)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (lambda whole: b"", "cut off"),
        (lambda whole: whole[:20], "cut off"),
        (lambda whole: whole[:-4], "is cut off: they take"),
        (lambda whole: whole + b"more", "something after its tensors"),
        (lambda whole: whole[:8] + b"[" + whole[9:], "its header is not one"),
        (lambda whole: whole[:8] + whole[8:].replace(b"data_offsets", b"data_offset_"), "its header is not one"),
        (lambda whole: whole.replace(b'"shape":[2,8]', b'"shape":[2,9]'), "its header is not one"),
        (lambda whole: GAP, "b does not begin where the tensor before it ends"),
        (lambda whole: b"PK\x03\x04" + whole, "a pickled file"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_whole_file_is_told(saved, content, word):
    path = saved[0] / NAME
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(CheckpointError, match=word):
        read_header(path)
    with pytest.raises(SafetensorError):
        load_file(path)
