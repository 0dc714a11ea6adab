"""Objects that are named ``"package.module:attribute"``: finding one, and saying why there is none."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from functools import cache
from typing import Any

from adapterkit.errors import did_you_mean

_DYNAMIC = re.compile(r"import\s*\(?\s*\*|__getattr__|\b(globals|locals|vars|setattr|exec|eval)\(|sys\.modules")
"""What a module may have names from that do not occur in its source."""


def find(reference: str) -> Any:
    """The object that ``"package.module:attribute"`` names; importing it may import torch."""
    module, _, attribute = reference.partition(":")
    value: Any = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        value = getattr(value, part)
    return value


@cache
def resolve(reference: str) -> Any:
    """What `find` finds, looked for once."""
    return find(reference)


def reason(reference: str, error: Exception) -> str:
    """Why ``error`` was raised when ``reference`` was to be found: what is not there, or what its module did."""
    module, _, attribute = reference.partition(":")
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name!r}"
    frames = list(traceback.extract_tb(error.__traceback__))
    if isinstance(error, AttributeError) and frames[-1].filename == __file__:
        there = vars(sys.modules[module])
        classes = [name for name, value in there.items() if isinstance(value, type)]
        return f"{module} has no {attribute!r}{did_you_mean(attribute, classes)}\n  at {there.get('__file__')}"
    return f"{type(error).__name__}: {error}\n  at {_place(error, frames)}"


def absent(reference: str) -> str:
    """Why ``reference`` names nothing, where that is certain without importing its module; else empty."""
    module, _, attribute = reference.partition(":")
    package, name = module.rpartition(".")[0], attribute.partition(".")[0]
    if package and package not in sys.modules:
        return absent(package)  # if it is there, only importing it would tell what is inside
    try:
        spec = importlib.util.find_spec(module)
        source = spec.loader.get_source(module) if spec else ""  # type: ignore[union-attr]
    except ModuleNotFoundError:
        spec = None
    except Exception:  # whatever a loader does that knows no source, or none that can be read
        return ""
    if spec is None:
        return f"there is no module {module!r}"
    if not name or not source or re.search(rf"\b{re.escape(name)}\b", source) or _DYNAMIC.search(source):
        return ""
    return f"{module} has no {name!r}\n  at {spec.origin}"


def _place(error: Exception, frames: list[traceback.FrameSummary]) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    outside = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    last = (outside or frames)[-1]
    return f"{last.filename}:{last.lineno}"
