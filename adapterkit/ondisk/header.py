"""What a safetensors file says of its tensors, without reading them; the library's own reader would import numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adapterkit.errors import CheckpointError

_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U8": ("uint8", 1), "BOOL": ("bool", 1), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip
"""The format's names of types to torch's, and bytes; others have a name of their own, and are not measured."""

_OTHERS = {b"version http": "a Git LFS pointer: fetch the file itself with `git lfs pull`", b"PK": "a pickled file"}
"""What lies under the name of a tensors' file instead, by its first bytes."""


@dataclass(frozen=True)
class Entry:
    """One tensor, but for its values."""

    dtype: str
    """As torch names it: ``"bfloat16"``."""
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether these are floating-point numbers."""
        return "float" in self.dtype


class Header(NamedTuple):
    """The tensors of a file by key, and what it says of itself."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, which its tensors must follow without a gap.

    Raises:
        CheckpointError: it is no such file, or cut off; says how much of it is there.
    """
    try:
        size, (length, text) = path.stat().st_size, _read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    try:
        content = json.loads(text)
        metadata = content.pop("__metadata__", {})
        places = sorted((*value["data_offsets"], key) for key, value in content.items())
        tensors = {key: _entry(value) for key, value in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is no safetensors file: its header is not one") from error
    end = 0
    for start, stop, key in places:
        if start != end:
            raise CheckpointError(
                f"{path} is no safetensors file: {key} does not begin where the tensor before it ends"
            )
        end = stop
    if size != 8 + length + end:
        what = "is cut off" if size < 8 + length + end else "has something after its tensors"
        raise CheckpointError(f"{path} {what}: they take {8 + length + end} bytes with their header, and it has {size}")
    return Header(tensors, metadata)


def _read(path: Path) -> tuple[int, bytes]:
    """The length of the header, and its text."""
    with path.open("rb") as file:
        start = file.read(16)
        for first, what in _OTHERS.items():
            if start.startswith(first):
                raise CheckpointError(f"{path} is no safetensors file, but {what}")
        length, size = int.from_bytes(start[:8], "little"), path.stat().st_size
        if len(start) < 8 or length + 8 > size:
            raise CheckpointError(f"{path} is cut off, or no safetensors file: {size} bytes do not hold its header")
        file.seek(8)
        return length, file.read(length)


def _entry(value: Mapping[str, Any]) -> Entry:
    """
    Raises:
        ValueError: it does not have as many bytes as its shape and type say.
    """
    start, end = value["data_offsets"]
    name, width = _DTYPES.get(value["dtype"], (value["dtype"].lower(), 0))
    entry = Entry(name, tuple(value["shape"]), end - start)
    if width and entry.numel * width != entry.nbytes:
        raise ValueError("another number of bytes")
    return entry
