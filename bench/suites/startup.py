"""Fresh processes: importing a library and making one validated config."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from bench.rows import OURS, PEFT, Row
from bench.timing import Runner


def rows(runner: Runner) -> Iterator[Row]:
    code = {name: f"from {name} import LoraConfig; LoraConfig(r=8, target_modules=['query'])" for name in (OURS, PEFT)}
    code["floor"] = "import pydantic; pydantic.BaseModel"
    times = runner.interleave({name: lambda text=text: _child_seconds(text) for name, text in code.items()}, 9, warm=0)
    yield Row.of_times("import and one LoraConfig", times, goal=0.04, floor="floor", note="floor: import pydantic")


def _child_seconds(code: str) -> float:
    """CPU seconds of a fresh interpreter that runs ``code``."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode} from: {code}")
    return usage.ru_utime + usage.ru_stime
