"""``python -m adapterkit``: verbs are answered before Hydra is imported; everything else is a run or a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code (`adapterkit.errors`).

    Args:
        argv: arguments without the program's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    from adapterkit.hydra.app import run
    return run(arguments)
