"""Lines of code of each method's folder, beside PEFT's: lines that hold something other than comments, docstrings and
blanks."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

from tests.parity.helpers import peft
from tests.tables.parity import documented

SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(source: str) -> int:
    """How many lines have a token that is neither a comment nor part of a docstring."""
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED:
            used |= set(range(token.start[0], token.end[0] + 1))
    return len(used - documentation)


def of_folder(folder: Path) -> int:
    return sum(lines_of_code(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py"))


def folders() -> dict[str, tuple[Path, Path]]:
    """Method -> our folder and PEFT's."""
    import adapterkit
    from adapterkit.registry import methods

    theirs = Path(peft.__file__).parent / "tuners"
    found = {}
    for name in documented():
        module = __import__(methods[name].__module__, fromlist=["__file__"])
        own = Path(str(module.__file__)).parent
        assert own.name == name or Path(adapterkit.__file__).parent not in own.parents
        found[name] = (own, theirs / name)
    return found


def table() -> str:
    lines = ["| method | ours | PEFT | ratio |", "|---|---|---|---|"]
    totals = [0, 0]
    for name, (own, other) in folders().items():
        sizes = of_folder(own), of_folder(other)
        totals = [total + size for total, size in zip(totals, sizes, strict=True)]
        lines.append(f"| {name} | {sizes[0]} | {sizes[1]} | {sizes[0] / sizes[1]:.2f} |")
    lines.append(f"| together | {totals[0]} | {totals[1]} | {totals[0] / totals[1]:.2f} |")
    return "\n".join(lines)
