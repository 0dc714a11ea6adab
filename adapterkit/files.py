"""Files that appear whole or not at all, and files fetched from a directory or from the Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterkit.errors import CheckpointError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file under its name in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fetch(model_id: str | Path, filename: str, *, subfolder: str | None = None, **hub: Any) -> Path:
    """The local path of one file of a saved adapter.

    Args:
        model_id: a directory, or a repository on the Hub.
        filename: the file's name.
        subfolder: folder inside ``model_id``.
        hub: passed on to `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: ``model_id`` is neither a directory nor a readable repository with that file.
    """
    directory = Path(model_id)
    if directory.is_dir():
        return directory / (subfolder or "") / filename
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(model_id), filename, subfolder=subfolder, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{model_id!s} is no directory, and {filename} was not found there on the Hub: {error}") from error
