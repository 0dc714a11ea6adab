"""``plugin new``: the package that it writes is whole, and keeps the contract as it is."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

import adapterkit
from adapterkit.cli.plugin import LONGEST, contents
from tests.commandline import command, in_new_process

ROOT = Path(adapterkit.__file__).parents[1]
KINDS = ["method", "task"]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> Path:
    """A generated package, declared as pip would."""
    root = tmp_path_factory.mktemp(request.param)
    words = ["plugin", "new", "my_own", "--kind", request.param, "--to", str(root / "plugin")]
    done = in_new_process("-m", "adapterkit", *words, cwd=root, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    declared = tomllib.loads((root / "plugin" / "pyproject.toml").read_text())["project"]
    info = root / "plugin" / "src" / "adapterkit_my_own-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: {declared['version']}\n")
    groups = declared["entry-points"].items()
    lines = [line for group, names in groups for line in (f"[{group}]", *(f"{n} = {v}" for n, v in names.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return root / "plugin"


def within(plugin: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a module's command in a package that is there as if it were installed."""
    paths = os.pathsep.join([str(plugin / "src"), str(ROOT)])
    return in_new_process("-m", *argv, cwd=plugin, PYTHONPATH=paths)


def test_it_passes_its_own_tests(made):
    done = within(made, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def test_it_is_on_the_command_line(made):
    words = ["+method=my_own", "task=seq_cls"] if "method" in str(made.parent.name) else ["+method=lora", "task=my_own"]
    done = within(made, "adapterkit", "validate", *words)
    assert (done.returncode, done.stdout[:4]) == (0, "ok: "), done.stderr
    if words[0] == "+method=my_own":
        assert within(made, "adapterkit", "validate", "+method=my_own_low", "task=seq_cls").returncode == 0
    assert within(made, "adapterkit", "plugins").returncode == 0


def test_it_is_clean(made):
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        pytest.importorskip("ruff")
        done = within(made, *words)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_its_types_hold(made):
    pytest.importorskip("mypy")
    done = within(made, "mypy", "src", "tests")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_is_filled_in(kind):
    written = dict(contents(kind, "one_two"))
    names = {str(path) for path in written}
    assert {"pyproject.toml", "README.md", "src/adapterkit_one_two/config.py", "tests/test_one_two.py"} <= names
    assert not [path for path, text in written.items() if "$" in text]
    assert "class OneTwoConfig" in written[Path("src/adapterkit_one_two/config.py")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a", "z" * LONGEST])
def test_short_and_long_names_are_clean(name, kind, capsys, tmp_path):
    pytest.importorskip("ruff")
    made = tmp_path / "plugin"
    assert command(capsys, "plugin", "new", name, "--kind", kind, "--to", str(made)).code == 0
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        done = within(made, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        max(len(line) for path in made.rglob("*.*") if path.is_file() for line in path.read_text().splitlines()) <= 120
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "lora"], "'lora' is taken: a method of adapterkit"),
        (["new", "seq_cls", "--kind", "task"], "'seq_cls' is taken: a task of adapterkit"),
        (["new", "acme"], "'acme' is taken: a package adapterkit_acme is installed"),
        (["new", "My-Own"], "'My-Own' is no name for a method"),
        (["new", "class"], "'class' is no name for a method"),
        (["new", "m" * 21], "is too long a name: 20 letters at most"),
        (["new", "a__b"], "'a__b' is no name for a method"),
        (["nwe", "mine"], "plugin has no 'nwe'; did you mean 'new'?"),
        (["new", "mine", "more"], "plugin takes no 'more'"),
        (["new", "mine", "--knd", "task"], "plugin has no flag '--knd'; did you mean '--kind'?"),
        (["new", "mine", "--to", "full"], "full is not empty"),
    ],
)
def test_what_cannot_be_made(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    told = command(capsys, "plugin", *words)
    assert (told.code, told.out) == (2, "")
    assert said in told.err
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["full", "full/mine"]


def test_it_needs_no_torch(tmp_path):
    done = in_new_process("-X", "importtime", "-m", "adapterkit", "plugin", "new", "mine", cwd=tmp_path)
    assert (done.returncode, "| torch\n" in done.stderr) == (0, False)
    assert (tmp_path / "adapterkit-mine" / "pyproject.toml").is_file()
