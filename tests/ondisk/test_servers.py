"""The table of serving programs, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterkit.ondisk.servers import SERVERS
from adapterkit.registry import methods

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def row(name):
    """What the page has of one program."""
    server = SERVERS[name]
    fields = ", ".join(f"`{field}`" for field in server.fields) or "-"
    return f"| `{name}`: {server.title} | {server.source} | {fields} |"


def test_the_page_shows_the_table():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows[1:] == [row(name) for name in SERVERS]


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_not_honoured_is_a_field_of_a_method_that_is_taken(name):
    known = {field for method in SERVERS[name].methods & {m.upper() for m in methods} for field in _fields(method)}
    assert SERVERS[name].fields.keys() <= known


def _fields(method):
    return methods[method.lower()].model_fields


@pytest.mark.parametrize("method", methods)
def test_fields_that_are_folded_or_need_the_base_are_fields(method):
    config = methods[method]
    assert config.folded_fields | config.based_fields <= config.model_fields.keys()
    assert bool(config.folded_fields) == (config.folding is not None)
