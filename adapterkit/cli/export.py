"""``export``: a saved adapter for the programs that serve it, or why they cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapterkit.cli.options import PLACES, TASK, Options
from adapterkit.errors import EXIT_CHECK, EXIT_OK, CheckFailedError, ConfigError, of_choices
from adapterkit.ondisk.reading import AdapterFiles, locate
from adapterkit.ondisk.servers import SERVERS, Fault, Server, advice, faults, file_faults
from adapterkit.ondisk.soundness import problems


def export(arguments: Sequence[str]) -> int:
    """``export DIR --for vllm --to OUT``, or ``export DIR --check``.

    Raises:
        ConfigError: there is no such adapter, program or model, or ``OUT`` is the adapter's own directory.
        CheckpointError: the files cannot be read, or not be written.
        CheckFailedError: the adapter is not sound, or cannot be served; says why.
    """
    given = _options().read(arguments)
    servers = _servers(given.programs)
    files = locate(given.adapter)
    unsound = problems(files)
    if unsound:
        raise CheckFailedError("\n".join([f"{files.directory} is not sound", *(f"! {line}" for line in unsound)]))
    if given.check:
        return _check(files, servers, as_json=given.json)
    if given.to is None or given.programs is None:
        raise ConfigError("export takes --for PROGRAM and --to OUT, or --check, which writes nothing")
    if (given.base is None) != (given.rank is None):
        raise ConfigError("export takes --base and --rank together: the model, and the rank of the LoRA adapter")
    if given.to.resolve() == files.directory.resolve() or (given.to.exists() and not given.to.is_dir()):
        raise ConfigError(f"--to {given.to}: give a directory of its own, not that of the adapter, nor a file")
    from adapterkit.cli.portable import write  # only now: it imports torch

    for line in write(files, servers, given.to, base=given.base, rank=given.rank, task=given.task):
        print(line)
    return EXIT_OK


def _options() -> Options:
    options = Options(
        "export",
        "DIR --for PROGRAM --to OUT [--base MODEL --rank RANK [--task NAME]]\nDIR --check [--for PROGRAM] [--json]",
        "Write an adapter so that a program serves it as it was trained: scales and ranks of single layers are folded "
        "into the factors. Several programs, separated by commas, get one directory that suits them all.",
        epilog="exit codes: 0 written, or with --check served as it is; 4 not, and why. The rules are those that the "
        "sources of the programs state (docs/serving.md); the programs are not run.",
    )
    options.add_argument("adapter", metavar="DIR", help=PLACES)
    options.add_argument("--for", dest="programs", metavar="PROGRAM", help=f"{', '.join(SERVERS)}; several with commas")
    options.add_argument(
        "--to", type=Path, metavar="OUT", help="the directory to write; an adapter that is there is replaced"
    )
    options.add_argument("--check", action="store_true", help="write nothing: list what each program cannot read")
    options.add_argument("--base", metavar="MODEL", help="the base model, for what becomes a LoRA adapter only with it")
    options.add_argument(
        "--rank", type=rank, metavar="RANK", help="its rank, or the share of the change's energy to keep, such as 0.99"
    )
    options.add_argument("--task", metavar="NAME", help=TASK)
    options.add_argument("--json", action="store_true", help="with --check: print the findings as JSON")
    return options


def rank(text: str) -> int | float:
    """A whole number, or a share."""
    return int(text) if text.isdigit() else float(text)


def _servers(names: str | None) -> dict[str, Server]:
    chosen = SERVERS if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in SERVERS:
            raise ConfigError(f"--for: no rules for {name!r}{of_choices(name, SERVERS, 'Programs:')}")
    return {name: SERVERS[name] for name in chosen}


def _check(files: AdapterFiles, servers: Mapping[str, Server], *, as_json: bool) -> int:
    config, tensors = files.config, files.header.tensors
    found = {name: [*faults(server, config, tensors), *file_faults(server, files)] for name, server in servers.items()}
    notes = {name: advice(server, config) for name, server in servers.items()}
    if as_json:
        told = {n: {"faults": [f._asdict() for f in found[n]], "notes": notes[n]} for n in servers}
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(line for n, server in servers.items() for line in _lines(n, server, found[n], notes[n])))
    return EXIT_CHECK if any(found.values()) else EXIT_OK


def _lines(name: str, server: Server, found: Sequence[Fault], notes: Sequence[str]) -> list[str]:
    head = f"{name}: ok" if not found else f"{name}: not as it is   ({server.source})"
    return [head, *(f"  ! {why}\n    {cure}" for why, cure in found), *(f"  note: {note}" for note in notes)]
