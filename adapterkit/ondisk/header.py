"""What a safetensors file says of its tensors, without reading them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from adapterkit.errors import CheckpointError

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
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
    """The header of a safetensors file; as many bytes must follow it as it says.

    Raises:
        CheckpointError: it is no such file, or cut off; says how much of it is there.
    """
    try:
        content = _header(path)
        with safe_open(path, "numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    metadata = content.pop("__metadata__", {})
    return Header({key: _entry(value) for key, value in content.items()}, metadata)


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        length = int.from_bytes(start[:8], "little")
        for first, what in _OTHERS.items():
            if start.startswith(first):
                raise CheckpointError(f"{path} is no safetensors file, but {what}")
        if size < 8 or length + 8 > size:
            raise CheckpointError(f"{path} is cut off, or no safetensors file: {size} bytes do not hold its header")
        file.seek(8)
        text = file.read(length)
    try:
        content = json.loads(text)
        ends = [value["data_offsets"][1] for key, value in content.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is no safetensors file: its header is not one") from error
    wanted = 8 + length + max(ends, default=0)
    if size < wanted:
        raise CheckpointError(f"{path} is cut off: its tensors take {wanted} bytes, and it has {size}")
    return dict(content)


def _entry(value: Mapping[str, Any]) -> Entry:
    start, end = value["data_offsets"]
    return Entry(_DTYPES.get(value["dtype"], value["dtype"].lower()), tuple(value["shape"]), end - start)
