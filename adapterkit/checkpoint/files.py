"""An adapter's two files: written together, read strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapterkit.checkpoint.keys import State
from adapterkit.checkpoint.tensors import write_tensors
from adapterkit.config.base import CONFIG_NAME, PeftConfig
from adapterkit.config.layer import pattern_value
from adapterkit.errors import CapabilityError, CheckpointError, of_choices
from adapterkit.files import HUB_OPTIONS, fetch, hub_options, replacing_all
from adapterkit.given import check_mapping, check_path, names_of
from adapterkit.ondisk.names import HEAD_PREFIX, PICKLED_NAME, PREFIX, WEIGHTS_NAME

_ACCEPTED = frozenset({"use_auth_token", "resume_download", "proxies"})
"""Options of older releases that change nothing any more."""

_REFUSED = {
    "ephemeral_gpu_offload": "adapters are computed where their layer is",
    "device_map": "give the base model its devices; adapters follow their layers",
    "max_memory": "give the base model its devices; adapters follow their layers",
    "offload_folder": "give the base model its devices; adapters follow their layers",
    "offload_dir": "give the base model its devices; adapters follow their layers",
    "offload_index": "give the base model its devices; adapters follow their layers",
}


@dataclass(frozen=True)
class Reading:
    """How a saved adapter is read."""

    strict: bool = True
    """Every tensor of the file must be expected, and every expected one be there."""

    ignore_mismatched_sizes: bool = False
    """Leave tensors of another shape as they are, and report them as missing."""

    allow_unknown: tuple[str, ...] = ()
    """Unknown keys of the config file that may be ignored."""

    key_mapping: Mapping[str, str] = field(default_factory=dict)
    """Regular expression -> replacement, for the tensors' names without PEFT's prefix; the first match counts."""

    hub: Mapping[str, Any] = field(default_factory=dict)
    """What `adapterkit.files.fetch` takes."""

    @classmethod
    def of(cls, options: Mapping[str, Any], *, strict: bool = True) -> Self:
        """From the keyword arguments of `PeftModel.from_pretrained`.

        Raises:
            TypeError: an unknown name.
            CapabilityError: an option of PEFT's that is not honoured here.
        """
        known = {"ignore_mismatched_sizes", "allow_unknown", "key_mapping", *HUB_OPTIONS, *_ACCEPTED}
        for name, value in options.items():
            if name in _REFUSED and value:
                raise CapabilityError(f"{name}={value!r} is not possible: {_REFUSED[name]}")
            if name not in known and name not in _REFUSED:
                raise TypeError(f"unknown option {name!r}{of_choices(name, sorted(known), 'Options:')}")
        mapping, allowed = options.get("key_mapping") or {}, options.get("allow_unknown")
        check_mapping(mapping, "key_mapping", "a mapping of regular expressions to replacements")
        return cls(
            strict=strict,
            ignore_mismatched_sizes=bool(options.get("ignore_mismatched_sizes")),
            allow_unknown=() if allowed is None else names_of(allowed, "allow_unknown", "the name of a key, or a list"),
            key_mapping=mapping,
            hub=hub_options(options),
        )

    def config(self, model_id: str | Path) -> PeftConfig:
        """The saved adapter's config."""
        return PeftConfig.from_pretrained(model_id, allow_unknown=self.allow_unknown, **self.hub)

    def contents(self, model_id: str | Path, device: str | torch.device | None = None) -> Contents:
        """The saved adapter's tensors, and what the file says of them."""
        return read_weights(model_id, device, self.key_mapping, **self.hub)


class Contents(NamedTuple):
    """What a file of tensors holds."""

    tensors: State
    metadata: Mapping[str, str]


_SILENT = frozenset({
    *("task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version"),
    "fan_in_fan_out",  # recognised by itself
    # these choose which tensors there are, and of which shapes
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"),
    *("feedforward_modules", "modules_to_save", "rank_pattern"),
})  # fmt: skip
"""Fields in which a file may differ from the adapter that it is loaded into."""


def check_config(
    found: PeftConfig, held: PeftConfig, name: str, source: str | Path, places: Iterable[str] = ()
) -> None:
    """Whether a file's tensors mean in adapter ``name``, which is at ``places``, what they mean in the file.

    Raises:
        CheckpointError: the file's config says otherwise; names every key that differs, with both values.
    """
    theirs, own = found.to_dict(), held.to_dict()
    differing = [key for key in own if own[key] != theirs.get(key) and key not in _SILENT]
    if "peft_type" in differing:
        differing = ["peft_type"]
    for key in held.start_fields.keys() & differing:
        values = held.start_fields[key]
        if values is None or (own[key] in values and theirs.get(key) in values):
            differing.remove(key)
    for key in getattr(held, "pattern_fields", {}).keys() & differing:
        patterns: list[Any] = [content.get(key) or {} for content in (theirs, own)]
        if all(pattern_value(patterns[0], place) == pattern_value(patterns[1], place) for place in places):
            differing.remove(key)  # one may have names that match nothing here
    if differing:
        listed = "; ".join(f"{key}={theirs.get(key)!r}, not {own[key]!r}" for key in differing)
        raise CheckpointError(
            f"{source} has another config than adapter {name!r}: {listed}. "
            "Delete the adapter before, or load the file under another name"
        )


def write_adapter(
    directory: Path,
    state: Mapping[str, Tensor],
    config: str,
    *,
    safe: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter's tensors and config. Both files are complete before either takes its name.

    Args:
        directory: where to; made if need be.
        state: tensors by key.
        config: content of ``adapter_config.json``.
        safe: safetensors; otherwise a pickled dict, for readers that know nothing else.
        metadata: what a safetensors file says of itself, besides its format.

    Raises:
        CheckpointError: a file cannot be written; those that were there are as before.
    """
    name = WEIGHTS_NAME if safe else PICKLED_NAME
    try:
        with replacing_all(directory / name, directory / CONFIG_NAME) as (weights, settings):
            if safe:
                write_tensors(weights, state, {"format": "pt", **(metadata or {})})
            else:
                torch.save({key: tensor.clone() for key, tensor in state.items()}, weights)
            settings.write_text(config, encoding="utf-8")
        if not safe:
            (directory / WEIGHTS_NAME).unlink(missing_ok=True)  # readers would prefer the older file
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"the adapter cannot be written to {directory}: {error}") from error


def load_peft_weights(
    model_id: str | Path,
    device: str | torch.device | None = None,
    key_mapping: Mapping[str, str] | None = None,
    **hub: Any,
) -> State:
    """The tensors of a saved adapter, by key.

    Args:
        model_id: directory, or repository on the Hub.
        device: where to; None is the CPU.
        key_mapping: regular expression -> replacement, for keys without PEFT's prefix; the first match counts.
        hub: ``subfolder``, ``revision``, ``token``, ... as for `adapterkit.files.fetch`.

    Raises:
        CheckpointError: no weights, or a file that cannot be read.
    """
    return read_weights(model_id, device, key_mapping, **hub).tensors


def read_weights(
    model_id: str | Path,
    device: str | torch.device | None = None,
    key_mapping: Mapping[str, str] | None = None,
    **hub: Any,
) -> Contents:
    """`load_peft_weights`, with what the file says of itself."""
    check_path(model_id, "model_id")
    contents = read_file(_weights_file(model_id, **hub), device)
    mapping = key_mapping or {}
    return contents._replace(tensors={_renamed(key, mapping): tensor for key, tensor in contents.tensors.items()})


def read_file(path: Path, device: str | torch.device | None = None) -> Contents:
    """One file of tensors; on the meta device, what they are like.

    Raises:
        CheckpointError: it cannot be read, or has something else.
    """
    try:
        state, metadata = _read(path, "cpu" if device is None else str(device))
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # pickle's own errors: weights_only refuses whatever is not a tensor
        raise CheckpointError(f"{path} is not a file of tensors: {error}") from error
    if state is None:
        raise CheckpointError(f"{path} is not a file of tensors")
    return Contents(state, metadata)


def _read(path: Path, device: str) -> tuple[Any, Mapping[str, str]]:
    """Tensors in memory of their own: not in a mapped file, which may change, and not views of one another; None where
    the file has something else. And what it says of itself."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt", device=device, backend="pread") as file:
            return file.get_tensors(), file.metadata() or {}
    state = torch.load(path, map_location=device, weights_only=True)
    return {key: value.clone() for key, value in state.items()} if _is_state(state) else None, {}


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _renamed(key: str, mapping: Mapping[str, str]) -> str:
    prefix = next((p for p in (PREFIX, HEAD_PREFIX) if key.startswith(p)), "")
    plain = key.removeprefix(prefix)
    for pattern, replacement in mapping.items():
        new, count = re.subn(pattern, replacement, plain)
        if count:
            return prefix + new
    return key


def _weights_file(model_id: str | Path, **hub: Any) -> Path:
    if Path(model_id).is_dir():
        paths = [fetch(model_id, name, **hub) for name in (WEIGHTS_NAME, PICKLED_NAME)]
        for path in paths:
            if path.is_file():
                return path
        raise CheckpointError(f"{paths[0].parent} has neither {WEIGHTS_NAME} nor {PICKLED_NAME}")
    try:
        return fetch(model_id, WEIGHTS_NAME, **hub)
    except CheckpointError as error:
        with suppress(CheckpointError):
            return fetch(model_id, PICKLED_NAME, **hub)
        raise error
