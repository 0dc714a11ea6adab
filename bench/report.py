"""The table in a document, with the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PACKAGES = ("torch", "transformers", "peft", "safetensors")


def machine() -> str:
    """CPU, cores, threads and versions, in one line."""
    info = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    found = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    model = found.group(1) if found else platform.processor() or platform.machine()
    numbers = (re.search(rf"^{key}\s*: (\d+)$", info, re.MULTILINE) for key in ("cpu family", "model", "stepping"))
    which = ".".join(number.group(1) for number in numbers if number)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    versions = ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    return (
        f"{model} (family, model, stepping {which}), {os.cpu_count()} cores, {threads} thread(s) used; "
        f"Python {platform.python_version()}, {versions}; {platform.system()}"
    )


def installed(package: str) -> str:
    """The version of a package; ``-`` where it is not there. Nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def write(path: Path, table: str, described: str) -> None:
    """Put a table and its machine between the marks of ``path``, in the place of what is there; or at its end."""
    content = path.read_text(encoding="utf-8") if path.exists() else "# Performance\n"
    block = f"{BEGIN}\n\nMachine: {described}.\n\n{table}\n\n{END}"
    if BEGIN in content and END in content:
        before, _, rest = content.partition(BEGIN)
        content = before + block + rest.partition(END)[2]
    else:
        content = f"{content.rstrip()}\n\n{block}\n"
    path.write_text(content, encoding="utf-8")
