"""Names that PEFT's programs import from ``tuners``, as they stand in `adapterkit` itself."""

from __future__ import annotations

from typing import Any

import adapterkit


def __getattr__(name: str) -> Any:
    if name.endswith(("Config", "Init", "Model", "Type")) and name in adapterkit.__all__:
        return getattr(adapterkit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
