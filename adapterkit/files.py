"""Files that appear whole or not at all, and files fetched from a directory or from the Hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.given import check_path

HUB_OPTIONS = frozenset(
    {"subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only", "etag_timeout", "headers",
     "user_agent", "repo_type", "endpoint"}
)  # fmt: skip
"""The options that fetching a file takes: those of `huggingface_hub.hf_hub_download`."""


PENDING = ".pending.json"
"""Stands in a directory while files there take their names together: final name -> name under which it is complete."""


@contextmanager
def replacing_all(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths beside ``paths``, of one directory, which take their places together when the block ends without
    an error.

    Every file that changes is on disk before the first one is renamed. Where more than one changes, a note of what is
    going on stands beside them meanwhile: whoever reads through `current` sees all of them as they were or all of them
    new, whenever writing is cut off.
    """
    finish(paths[0].parent)
    temporary: list[Path] = []
    try:
        for path in paths:
            temporary.append(_temporary(path))
        yield temporary
        changed = {file: path for file, path in zip(temporary, paths, strict=True) if not _same(file, path)}
        for file in changed:
            file.chmod(0o666 & ~_umask())
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if len(changed) > 1:
            note = _temporary(paths[0].parent / PENDING)
            temporary.append(note)
            note.write_text(json.dumps({path.name: file.name for file, path in changed.items()}), encoding="utf-8")
            note.replace(paths[0].parent / PENDING)
            temporary = [file for file in temporary if file not in changed]
            finish(paths[0].parent)
        else:
            for file, path in changed.items():
                file.replace(path)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)


def finish(directory: Path) -> None:
    """Let files take their names where writing was cut off in the middle of that."""
    for name, temporary in _pending(directory).items():
        if (directory / temporary).is_file():
            (directory / temporary).replace(directory / name)
    (directory / PENDING).unlink(missing_ok=True)


def current(path: Path) -> Path:
    """Where the content of ``path`` is: there, or beside it, where files were about to take their names together."""
    temporary = path.parent / _pending(path.parent).get(path.name, path.name)
    return temporary if temporary.is_file() else path


def _pending(directory: Path) -> dict[str, str]:
    try:
        return json.loads((directory / PENDING).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _same(file: Path, other: Path) -> bool:
    """Whether two small files have the same content; large ones are taken to differ."""
    sizes = [path.stat().st_size if path.is_file() else -1 for path in (file, other)]
    return sizes[0] == sizes[1] < 1_000_000 and file.read_bytes() == other.read_bytes()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    with replacing_all(path) as (temporary,):
        yield temporary


def refuse_occupied(directory: Path) -> None:
    """
    Raises:
        ConfigError: something is there that is no empty directory, or a file is where a folder above it would be.
    """
    _refuse_file_above(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        what = "not empty" if directory.is_dir() else "a file"
        raise ConfigError(f"{directory} is {what}, and nothing is written over")


def refuse_no_file(path: Path) -> None:
    """
    Raises:
        ConfigError: no file can be there: a directory is, or a file is where a folder above it would be.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a directory")
    _refuse_file_above(path)


def _refuse_file_above(path: Path) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{path} cannot be written: {above} is a file")


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A temporary directory beside ``directory`` that takes its name when the block ends without an error; otherwise
    nothing is left.

    Raises:
        ConfigError: there is something under that name that is no empty directory, or it cannot be made.
    """
    refuse_occupied(directory)
    made = missing_folders(directory.parent)
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.", suffix=".tmp"))
        yield temporary
        for path in temporary.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(made)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".tmp{path.suffix}")
    os.close(handle)
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file under its name in one step; one that has this text already is left alone."""
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_settings(path: Path) -> dict[str, Any]:
    """The content of an ``adapter_config.json``, as it stands there.

    Raises:
        CheckpointError: there is no such file, or it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: not an adapter's directory") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(content).__name__}")
    return content


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
    if subfolder is not None:
        check_path(subfolder, "subfolder", "a folder's name")
    directory = Path(model_id)
    if directory.is_dir():
        return current(directory / (subfolder or "") / filename)
    from huggingface_hub import hf_hub_download

    from adapterkit.hub.errors import explained

    wanted = f"{subfolder}/{filename}" if subfolder else filename
    with explained(str(model_id), revision=hub.get("revision"), wanted=wanted):
        return Path(hf_hub_download(str(model_id), filename, subfolder=subfolder, **hub))


def cached(model_id: str | Path, filename: str) -> Path | None:
    """The local path of a file of a directory, or of a repository as far as it is in the cache; never the network."""
    if Path(model_id).is_dir():
        path = Path(model_id) / filename
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(model_id), filename)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that fetching takes, under today's names."""
    chosen = {key: value for key, value in options.items() if key in HUB_OPTIONS and value is not None}
    if options.get("use_auth_token") is not None:
        chosen.setdefault("token", options["use_auth_token"])
    return chosen


def missing_folders(path: Path) -> list[Path]:
    """The directories that making ``path`` with its parents would make, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the directories that are there and have nothing in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove_unused(folder: Path) -> None:
    """Remove a run's directory if there is nothing in it, or nothing but the log that Hydra begins."""
    there = list(folder.iterdir()) if folder.is_dir() else []
    if [path.suffix for path in there] == [".log"]:
        there[0].unlink()
    remove_empty([folder])
