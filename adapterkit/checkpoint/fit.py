"""What of an adapter's tensors does not fit a model, told with the nearest names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adapterkit.config.base import PeftConfig
from adapterkit.errors import nearest

_SHOWN = 20
"""How many differences an error lists."""


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, ignore_shapes: bool) -> list[str]:
    """What of some tensors does not fit those that are expected, a line each, with the nearest names."""
    missing, unexpected = [k for k in expected if k not in given], [k for k in given if k not in expected]
    problems = [(_missing, key, unexpected) for key in missing] + [(_unexpected, key, missing) for key in unexpected]
    lines = [describe(key, others) for describe, key, others in problems[:_SHOWN]]
    lines += [""] * (len(problems) - len(lines))
    both = [(key, given[key], tensor) for key, tensor in expected.items() if key in given]
    if not ignore_shapes:
        lines += [
            f"  shape: {key} is {tuple(new.shape)}, expected {tuple(own.shape)}"
            for key, new, own in both
            if new.shape != own.shape
        ]
    lines += [
        f"  type: {key} is {new.dtype}, expected {own.dtype}"
        for key, new, own in both
        if new.is_floating_point() != own.is_floating_point()
    ]
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"  ... and {len(lines) - _SHOWN} more"]


def names_that_end(config: PeftConfig | None, unexpected: list[str]) -> list[str]:
    """What to write in ``modules_to_save`` where PEFT has saved modules whose names only end as one that is stated."""
    stated = (config and config.modules_to_save) or []
    modules = [key.rpartition(".")[0] for key in unexpected]
    lasts = {name.rpartition(".")[2] for name in modules if name.endswith(tuple(stated))}
    if not lasts:
        return []
    return [
        f"  modules_to_save={stated} means modules of these names; PEFT saves all whose names end so. To read such a "
        f"file, write modules_to_save={sorted({*lasts, *stated})} in its config"
    ]


def _missing(key: str, unexpected: list[str]) -> str:
    near = nearest(key, unexpected)
    return f"  missing: {key}{f' (the file has {near})' if near else ''}"


def _unexpected(key: str, missing: list[str]) -> str:
    near = nearest(key, missing)
    return f"  unexpected: {key}{f' (the model has {near})' if near else ''}"
