"""A saved adapter: where it is, its config, and what its file says of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterkit.config.base import CONFIG_NAME, PeftConfig
from adapterkit.errors import CheckpointError, ConfigError
from adapterkit.files import cached, current, read_settings
from adapterkit.ondisk.header import Entry, Header, read_header
from adapterkit.ondisk.names import ARCHITECTURE, PICKLED_NAME, WEIGHTS, WEIGHTS_NAME, WRITER
from adapterkit.references import resolve

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SHOWN = 8
"""How many names an error lists."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's directory. Nothing is read before it is asked for."""

    directory: Path
    file: Path | None = field(default=None)
    """The tensors, where they have another name than the usual one."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``, as it stands there.

        Raises:
            CheckpointError: there is none, or it is no JSON object.
        """
        return read_settings(current(self.directory / CONFIG_NAME))

    @cached_property
    def config(self) -> PeftConfig:
        """The config that these settings describe.

        Raises:
            CheckpointError: the file cannot be read.
            ConfigError: a key is unknown or a value is not valid; names them all.
        """
        return PeftConfig.from_dict(self.settings, source=str(self.directory / CONFIG_NAME))

    @cached_property
    def weights(self) -> Path:
        """The file with the tensors.

        Raises:
            CheckpointError: there is none.
        """
        if self.file is not None:
            return self.file
        for name in (WEIGHTS_NAME, PICKLED_NAME):
            path = current(self.directory / name)
            if path.is_file():
                return path
        raise CheckpointError(f"{self.directory} has neither {WEIGHTS_NAME} nor {PICKLED_NAME}")

    @cached_property
    def header(self) -> Header:
        """What the file says of its tensors. A pickled one says nothing: it is read, by torch.

        Raises:
            CheckpointError: it cannot be read, or is cut off.
        """
        if self.weights.suffix == ".safetensors":
            return read_header(self.weights)
        contents = resolve("adapterkit.checkpoint.files:read_file")(self.weights, "meta")
        return Header({key: entry_of(tensor) for key, tensor in contents.tensors.items()}, contents.metadata)

    def tensors(self) -> Mapping[str, Any]:
        """The tensors by key, on the CPU. Imports torch.

        Raises:
            CheckpointError: they cannot be read.
        """
        found: Mapping[str, Any] = resolve("adapterkit.checkpoint.files:read_file")(self.weights, "cpu").tensors
        return found

    @property
    def base(self) -> dict[str, str]:
        """What the file says of the base model that the adapter was made on: ``architecture`` and ``weights``, a
        fingerprint."""
        names = {"architecture": ARCHITECTURE, "weights": WEIGHTS}
        return {name: self.header.metadata[key] for name, key in names.items() if key in self.header.metadata}

    @property
    def writer(self) -> str:
        """Which library wrote it, as far as config, file and card tell."""
        form = self.settings.get("peft_version")
        card = self.directory / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        own = re.search(r"^- adapterkit (\S+)", text, re.MULTILINE)
        metadata = self.header.metadata
        if own or any(key.startswith("adapterkit_") for key in metadata):
            name = f"adapterkit {metadata.get(WRITER) or (own[1] if own else '')}".rstrip()
            return f"{name}, in the format of PEFT {form}" if form else name
        found = re.search(r"^- PEFT (\S+)", text, re.MULTILINE)
        version = form or (found[1] if found else None)
        return f"PEFT {version}" if version else "unknown"


def entry_of(tensor: Any) -> Entry:
    """One of torch's tensors without its values."""
    return Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.numel() * tensor.element_size())


def locate(where: str) -> AdapterFiles:
    """The adapter that is meant: a directory, one of its files, a run's directory, or a Hub id that is in the cache.

    Raises:
        ConfigError: there is no such thing, or it has no adapter, or several.
    """
    path = Path(where)
    if path.is_file() and _holds_adapter(path.parent):
        return AdapterFiles(path.parent, path if path.suffix in (".safetensors", ".bin") else None)
    if path.exists():
        return AdapterFiles(_inside(path))
    config = cached(where, CONFIG_NAME) if _HUB_ID.fullmatch(where) else None
    if config is not None:
        return AdapterFiles(config.parent)
    hub = ", and no repository of that name has an adapter in the Hub's cache" if _HUB_ID.fullmatch(where) else ""
    raise ConfigError(f"{where}: no such file or directory{hub}")


def _inside(directory: Path) -> Path:
    """Where in a directory the adapter is: there, or in a folder, as in a run's directory."""
    if _holds_adapter(directory):
        return directory
    folders = [directory / "adapter", *_subfolders(directory)]
    found = {folder: None for each in folders for folder in (each, *_folders(each)) if (folder / CONFIG_NAME).is_file()}
    own = [folder for folder in found if folder.is_relative_to(directory / "adapter")]
    chosen = own or list(found)
    if len(chosen) > 1:
        names = ", ".join(str(folder) for folder in chosen[:_SHOWN])
        raise ConfigError(f"{directory} has several adapters; say which: {names}")
    if not chosen:
        raise ConfigError(
            f"{directory} is neither an adapter ({CONFIG_NAME}, {WEIGHTS_NAME}) nor a run that has one (adapter/)"
        )
    return chosen[0]


def _holds_adapter(directory: Path) -> bool:
    return any((directory / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLED_NAME))


def _folders(directory: Path) -> list[Path]:
    """The folders in ``directory/adapter``, one for each adapter that has a name; of others, none."""
    return _subfolders(directory) if directory.name == "adapter" else []


def _subfolders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
