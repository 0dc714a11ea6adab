"""``merge``: an adapter and its base as one plain model."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterkit.cli.flags import only
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
    parser = argparse.ArgumentParser(
        "adapterkit merge",
        description="Merge an adapter into its base, and write a plain model of transformers with its tokenizer. It is "
        "read back, and its outputs for one batch are compared with the adapter's: if they differ, nothing is left.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="an adapter's directory, or a run's")
    parser.add_argument("--to", type=Path, metavar="OUT", required=True, help="where to; nothing may be there")
    parser.add_argument("--base", metavar="PATH", help="directory or Hub id of the base, if not the adapter's own")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of the weights that are written (the base's)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="how far outputs may differ, relative to the largest one (1e-4 in float32, 1e-2 in float16, 5e-2 in "
        "bfloat16 and for a quantised base)",
    )
    options = only(parser, arguments)
    if options.tolerance is not None and not options.tolerance >= 0:
        raise ConfigError(f"--tolerance={options.tolerance}: must be 0 or more")
    refuse_occupied(options.to)
    found = find(options.directory)
    gc.enable()
    from adapterkit.train.console import console  # only now: a mistake costs no import of torch
    from adapterkit.train.merging import merge as merged

    with console():
        result = merged(found, options.to, base=options.base, dtype=options.dtype, tolerance=options.tolerance)
    print(text(result, found.config.peft_type))
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
