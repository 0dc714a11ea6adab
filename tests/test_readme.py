"""The method that README.md shows: as it stands there it keeps the contract, and runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.commandline import in_new_process, write_distribution

ROOT = Path(__file__).resolve().parents[1]


def section(title: str) -> str:
    """The text below one heading of README.md."""
    return re.search(rf"^## {title}\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]


def block(language: str) -> str:
    """The first block of code in that language of the section on methods."""
    return re.search(rf"^```{language}\n(.*?)^```", section("A method of your own"), re.M | re.S)[1]


def files() -> dict[str, str]:
    """The sources in the Python block, by the paths that head them."""
    parts = re.split(r"^# (\S+\.py).*\n", block("python"), flags=re.M)
    assert not parts[0].strip()
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A directory in which the method is installed."""
    site = tmp_path_factory.mktemp("site")
    for path, source in files().items():
        (site / path).parent.mkdir(exist_ok=True)
        (site / path).write_text(source)
    declared = tomllib.loads(block("toml"))["project"]["entry-points"]
    write_distribution(site, "my-method", declared)
    return site


def test_its_files_are_a_config_an_adapter_and_tests():
    assert list(files()) == ["my_method/config.py", "my_method/adapter.py", "tests/test_scale.py"]


def test_it_keeps_the_contract(site):
    path = f"{site}:{ROOT}"
    done = in_new_process("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=site, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50


def test_it_runs_in_half_precision(site, tmp_path):
    line = re.search(r"`python -m adapterkit (.*?)`", section("A method of your own"))[1]
    short = ["model.dtype=bfloat16", "trainer.max_steps=2", "trainer.use_cpu=true", "data.max_train_samples=16"]
    done = in_new_process("-m", "adapterkit", *line.split(), *short, cwd=tmp_path, PYTHONPATH=f"{site}:{ROOT}")
    assert done.returncode == 0, done.stderr
