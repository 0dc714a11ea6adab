"""``merge``: an adapter and its base as one plain model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterkit.cli.options import PLACES, Options
from adapterkit.errors import EXIT_OK, ConfigError
from adapterkit.files import refuse_occupied
from adapterkit.train.found import find

if TYPE_CHECKING:
    from adapterkit.train.merging import Merged


def merge(arguments: Sequence[str]) -> int:
    """``merge DIR --to OUT``.

    Raises:
        ConfigError: a flag is unknown, ``DIR`` is no adapter, the base is not there, or ``OUT`` is.
        CapabilityError: the method cannot be merged.
        CheckFailedError: what was written computes something else than the adapter.
    """
    options = Options(
        "merge",
        "DIR --to OUT [--base MODEL] [--dtype TYPE] [--tolerance SHARE]",
        "Merge an adapter into its base, and write a plain model of transformers with its tokenizer. It is "
        "read back, and its outputs for one batch are compared with the adapter's: if they differ, nothing is left.",
        epilog="exit codes: 0 written; 4 it computes something else, and nothing is left",
    )
    options.add_argument("adapter", metavar="DIR", help=PLACES)
    options.add_argument(
        "--to", type=Path, metavar="OUT", required=True, help="the directory to write; nothing may be there"
    )
    options.add_argument("--base", metavar="MODEL", help="the base model, if not the one that the adapter names")
    options.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        metavar="TYPE",
        help="of the weights that are written: float32, bfloat16 or float16 (the base's)",
    )
    options.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="how far outputs may differ, relative to the largest one (1e-4 in float32, 1e-2 in float16, 5e-2 in "
        "bfloat16 and for a quantised base)",
    )
    given = options.read(arguments)
    if given.tolerance is not None and not given.tolerance >= 0:
        raise ConfigError(f"--tolerance={given.tolerance}: must be 0 or more")
    refuse_occupied(given.to)
    found = find(given.adapter)
    gc.enable()
    from adapterkit.train.console import console  # only now: a mistake costs no import of torch
    from adapterkit.train.merging import merge as merged

    with console():
        result = merged(found, given.to, base=given.base, dtype=given.dtype, tolerance=given.tolerance)
    print(text(result, found.files.config.peft_type))
    return EXIT_OK


def text(merged: Merged, method: str) -> str:
    """What was done, for reading."""
    apart = merged.distance
    size = sum(path.stat().st_size for path in merged.directory.rglob("*") if path.is_file())
    return "\n".join(
        [
            f"{method} merged into {merged.base}: {merged.layers} layers",
            f"outputs of up to {apart.size:.3g} differ by {apart.largest:.1e} at most "
            f"({merged.tolerance * apart.size:.1e} is allowed)",
            f"{merged.directory}: {merged.dtype}, {size:,} bytes, "
            f"{'with' if merged.has_tokenizer else 'without a'} tokenizer",
        ]
    )
