"""The names that files and tensors of a saved adapter have."""

from __future__ import annotations

WEIGHTS_NAME, PICKLED_NAME = "adapter_model.safetensors", "adapter_model.bin"

PREFIX, HEAD_PREFIX = "base_model.model.", "base_model."
"""What stands before a tensor's name in the model; heads beside a prompt have the shorter one."""

ARCHITECTURE, WEIGHTS = "adapterkit_base_architecture", "adapterkit_base_weights"
"""Metadata of the file: what kind of model the adapter was made on, and a fingerprint of its weights."""

WRITER = "adapterkit_version"
"""Metadata of an exported file: the version that wrote it."""


def plain(key: str) -> str:
    """A tensor's name without a prefix."""
    return next((key.removeprefix(p) for p in (PREFIX, HEAD_PREFIX) if key.startswith(p)), key)


def with_open_numbers(name: str) -> str:
    """A module's or tensor's name as all of a stack have it: ``layers.*.self_attn.q_proj``."""
    return ".".join("*" if step.isdigit() else step for step in name.split("."))
