"""A saved adapter as some programs can serve it: converted, folded and written anew. Imports torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adapterkit import __version__
from adapterkit.checkpoint.files import write_adapter
from adapterkit.cli.options import size
from adapterkit.config.base import PeftConfig
from adapterkit.errors import CheckFailedError
from adapterkit.files import replacing
from adapterkit.ondisk.header import Entry
from adapterkit.ondisk.names import WRITER
from adapterkit.ondisk.reading import AdapterFiles, entry_of
from adapterkit.ondisk.servers import Cure, Fault, Server, advice, as_written, faults
from adapterkit.references import resolve
from adapterkit.train.standalone import matched

BESIDE = (
    *("README.md", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "spiece.model", "chat_template.*"),
)
"""Files that go along: the card, and a tokenizer, which may have been changed with the adapter."""


@dataclass(frozen=True)
class Portable:
    """What is going to be written."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]

    @property
    def entries(self) -> dict[str, Entry]:
        """The tensors without their values."""
        return {key: entry_of(tensor) for key, tensor in self.tensors.items()}


def write(
    files: AdapterFiles,
    servers: Mapping[str, Server],
    out: Path,
    *,
    base: str | None,
    rank: int | float | None,
    task: str | None = None,
) -> Iterable[str]:
    """Write a sound adapter into ``out`` so that all of the programs serve it as it was trained.

    Args:
        files: the adapter.
        servers: who is going to serve it.
        out: a directory, made if need be.
        base: the model it was made on, for what becomes a LoRA adapter only with it.
        rank: of that adapter, or the share of the change's energy that it has to have.
        task: whose head the base has, where the config says none.

    Returns:
        what was done, a line each.

    Raises:
        CheckFailedError: they cannot, and why; nothing is written.
        CheckpointError: the files cannot be written.
    """
    wrong = _faults(servers, files.config, files.header.tensors)
    curable = {Cure.WRITTEN, Cure.FOLDED, *([Cure.CONVERTED] if base is not None else [])}
    _refuse([fault for fault in wrong if fault.cure not in curable])
    done = []
    if base is not None and rank is not None and any(fault.cure is Cure.CONVERTED for fault in wrong):
        adapter, line = _converted(files, base, rank, task)
        done.append(line)
    else:
        adapter = Portable(files.config, files.tensors())
    lists_targets = any(server.lists_targets for server in servers.values())
    adapter = Portable(as_written(adapter.config, adapter.entries, lists_targets=lists_targets), adapter.tensors)
    folding = [fault for fault in _faults(servers, adapter.config, adapter.entries) if fault.cure is Cure.FOLDED]
    if folding and adapter.config.folding is not None:
        adapter = Portable(*resolve(adapter.config.folding)(adapter.config, adapter.tensors))
        done += [f"folded into the factors: {', '.join(dict.fromkeys(f.why.partition('=')[0] for f in folding))}"]
    _refuse(_faults(servers, adapter.config, adapter.entries))
    _save(files, adapter, out)
    done += [line for server in servers.values() for line in advice(server, adapter.config)]
    total = size(sum(entry.nbytes for entry in adapter.entries.values()))
    return [*done, f"wrote {out} for {', '.join(server.title for server in servers.values())}: {total}"]


def _faults(servers: Mapping[str, Server], config: PeftConfig, entries: Mapping[str, Entry]) -> list[Fault]:
    found = (fault for server in servers.values() for fault in faults(server, config, entries))
    return list(dict.fromkeys(found))


def _refuse(found: Iterable[Fault]) -> None:
    """
    Raises:
        CheckFailedError: there are faults.
    """
    lines = [f"  ! {why}\n    {cure}" for why, cure in found]
    if lines:
        raise CheckFailedError("\n".join(["the adapter cannot be served, and nothing was written", *lines]))


def _converted(files: AdapterFiles, base: str, rank: int | float, task: str | None) -> tuple[Portable, str]:
    from adapterkit import convert_to_lora

    conversion = convert_to_lora(matched(files, base, task=task), rank)
    worst = max(conversion.errors, key=conversion.errors.__getitem__)
    config, tensors = conversion
    missing = f"at most {conversion.errors[worst]:.2g} of a layer's change is missing, at {worst}"
    return Portable(config, tensors), f"converted to LoRA of rank {config.r} on {base}: {missing}"


def _save(files: AdapterFiles, adapter: Portable, out: Path) -> None:
    metadata = {key: value for key, value in files.header.metadata.items() if key != "format"} | {WRITER: __version__}
    write_adapter(out, adapter.tensors, adapter.config.to_json(), metadata=metadata)
    for pattern in BESIDE:
        for path in files.directory.glob(pattern):
            with replacing(out / path.name) as temporary:
                shutil.copyfile(path, temporary)
