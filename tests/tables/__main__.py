"""``python -m tests.tables [name ...]`` writes the tables of ``docs/methods.md`` anew: all, or those named."""

from __future__ import annotations

import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

from tests.tables.page import TABLES, rewrite  # noqa: E402


def main() -> None:
    names = sys.argv[1:] or list(TABLES)
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        sys.exit(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    rewrite(names)


if __name__ == "__main__":
    main()
