"""The tables in ``docs/methods.md``: what stands between ``<!-- table: name -->`` and ``<!-- end -->`` is generated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.sst2 import read
from bench.sst2 import table as accuracy
from tests.tables import capabilities, counts, differences, parity, size

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "capabilities": capabilities.table,
    "laws": capabilities.laws,
    "parity": parity.table,
    "differences": differences.table,
    "counts": counts.table,
    "accuracy": lambda: accuracy(read(ROOT / "bench" / "results" / "sst2.jsonl")),
    "size": size.table,
}


def written(name: str) -> str:
    """What the page has in a block."""
    found = {match.group(2): match.group(0) for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))}
    return "\n".join(found[name].splitlines()[1:-1])


def rewrite(names: Iterable[str]) -> None:
    """Generate these blocks anew; the others stay."""
    chosen = set(names)

    def block(match: re.Match[str]) -> str:
        name = match.group(2)
        return f"{match.group(1)}{TABLES[name]()}\n{match.group(3)}" if name in chosen else match.group(0)

    PAGE.write_text(BLOCK.sub(block, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
