"""Saved adapters that are written by hand, and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def change(directory: Path, **settings) -> None:
    """Give the config of a saved adapter other settings."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rewrite(directory: Path, alter) -> None:
    """Write the tensors of a saved adapter anew, as ``alter`` leaves their dict."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    alter(tensors)
    save_file(tensors, path, {"format": "pt"})


def pickled(directory: Path) -> None:
    """Tensors as ``adapter_model.bin``."""
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), directory / "adapter_model.bin")
    path.unlink()
