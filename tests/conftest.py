"""What holds for every test: one thread, no network, and a line that counts the laws of the contract.

``TEST_DEVICE=cuda python -m pytest tests/contract`` holds the methods to their laws on a GPU.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if "TEST_DEVICE" in os.environ:
    import torch

    torch.set_default_device(os.environ["TEST_DEVICE"])
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, as on a CPU

_LAW = re.compile(r"tests/contract/.*::Test(?:Method|Prompt|Task)_(\w+)::")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many laws of the contract were run, and for what."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    names = [found.group(1) for report in reports if (found := _LAW.search(report.nodeid))]
    if names:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))
        terminalreporter.write_line(f"contract: {len(names)} laws run, {counts}")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """A directory with a saved adapter, and the model it was saved from."""
    from tests.models import moved

    model = moved()
    model.save_pretrained(tmp_path)
    return tmp_path, model
