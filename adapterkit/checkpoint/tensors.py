"""Writing safetensors files: by the library, handed the tensors where they lie.

`safetensors.torch.save_file` looks for shared memory and goes by way of numpy, which is more than half of its time for
hundreds of small tensors. Metadata, which come out in another order on every run, are put in order: the same adapter
gives the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import TensorSpec, serialize_file
from torch import Tensor

_START = '{"__metadata__":'


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors by key, from whatever device and memory; those that share memory are written each for itself.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: a tensor has no values, as on the meta device.
        safetensors.SafetensorError: the format has no such type, or the file cannot be written.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}  # alive until all is written
    specs = {
        key: TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=tensor.nbytes,
        )
        for key, tensor in plain.items()
    }
    serialize_file(specs, path, dict(metadata))
    _order_metadata(path)


def _order_metadata(path: Path) -> None:
    """Write a file's metadata in the order of their names, in the same bytes of its header. They stand first in it, so
    that the tensors' entries, hundreds of them, need not be read."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length).decode()
        if not header.startswith(_START):
            return
        metadata, end = json.JSONDecoder().raw_decode(header, len(_START))
        ordered = json.dumps(dict(sorted(metadata.items())), separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) == len(header[len(_START) : end].encode()):
            file.seek(8 + len(_START))
            file.write(ordered)
