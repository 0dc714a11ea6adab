"""Programs written for PEFT's public API, run with `peft` replaced by `adapterkit` in their imports: same output, same
files."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))
SETTINGS_OF_THEIR_OWN = {
    "target_modules",
    "feedforward_modules",
    "auto_mapping",
    "peft_version",
    "modules_to_save",
    "exclude_modules",
}


class Replaced(ast.NodeTransformer):
    """``peft`` becomes another package in every import."""

    def __init__(self, package: str) -> None:
        self.package = package

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name == "peft":
                alias.name, alias.asname = self.package, "peft"
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.module and node.module.partition(".")[0] == "peft":
            node.module = self.package + node.module.removeprefix("peft")
        return node


def run(program, package, directory, monkeypatch):
    """What a program prints, started in a directory of its own."""
    directory.mkdir()
    monkeypatch.chdir(directory)
    tree = ast.fix_missing_locations(Replaced(package).visit(ast.parse(program.read_text())))
    printed = io.StringIO()
    torch.manual_seed(0)
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(compile(tree, str(program), "exec"), {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_runs_the_same(program, tmp_path, monkeypatch):
    theirs = run(program, "peft", tmp_path / "theirs", monkeypatch)
    ours = run(program, "adapterkit", tmp_path / "ours", monkeypatch)
    assert "without a word" not in ours
    assert ours.splitlines() == theirs.splitlines()
    assert theirs
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")


def assert_same_files(ours: Path, theirs: Path) -> None:
    names = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert names == {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    for name in names:
        if name.suffix == ".safetensors" and "base" not in str(name):
            drawn = "drawn" in str(name)  # each library draws its own
            assert_same_tensors(load_file(ours / name), load_file(theirs / name), values=not drawn)
        elif name.name == "adapter_config.json":
            assert_same_settings(*(json.loads((root / name).read_text()) for root in (ours, theirs)))


def assert_same_tensors(ours, theirs, *, values):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape, key
        if values:
            torch.testing.assert_close(ours[key], tensor, atol=1e-4, rtol=1e-3)


def assert_same_settings(ours, theirs):
    assert not ours.keys() - theirs.keys()
    for key in (ours.keys() & theirs.keys()) - SETTINGS_OF_THEIR_OWN:
        assert ours[key] == theirs[key] or (not ours[key] and not theirs[key]), key
    for key in ("target_modules", "modules_to_save"):
        if isinstance(theirs.get(key), list) and isinstance(ours.get(key), list):
            assert set(ours[key]) <= set(theirs[key]) or key == "target_modules"


def test_there_are_enough_programs():
    assert len(PROGRAMS) >= 20
