"""Fields of the methods that adapt layers: which modules they target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from adapterkit.config.base import PeftConfig
from adapterkit.config.strict import Names, Pattern, pattern_fault


class LayerConfig(PeftConfig):
    """A method that puts an adapter at each of its target modules."""

    target_modules: Pattern | None = Field(
        None,
        description="A list of module names or name suffixes ('role:query' for a role), one regular expression that "
        "matches whole names, 'all-linear', or null for the usual targets of the architecture.",
    )
    exclude_modules: Pattern | None = Field(
        None, description="Modules to leave alone, as a list of name suffixes or one regular expression."
    )

    pattern_fields: ClassVar[Mapping[str, str]] = {}
    """Fields that map name patterns to values, and the field whose value they replace; each pattern must match a
    target."""

    subset_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Fields that name some of the targets, as `target_modules` names modules, and the roles that null means."""

    stacking: ClassVar[str | None] = None
    """Makes one adapter of a stacked parameter of those of its parts: ``module:function`` of ``parts[layer][expert]``,
    each the tensors of an adapter by key, to the tensors of one."""

    default_roles: ClassVar[tuple[str, ...]] = ("query", "value")
    """The roles that ``target_modules=None`` means, for architectures named in `adapterkit.architectures`."""

    @model_validator(mode="after")
    def _patterns_compile(self) -> Self:
        for field in self.pattern_fields:
            for pattern in getattr(self, field) or {}:
                fault = pattern_fault(pattern)
                if fault:
                    raise ValueError(f"{field}: {pattern!r} is {fault}")
        return self

    def roles_in(self, model_type: str | None) -> tuple[str, ...]:
        """The roles that ``target_modules=None`` means in a family."""
        return self.default_roles

    def narrowed(self, targets: list[str]) -> list[str]:
        """Those of the matched modules, in the model's order, that are really adapted.

        Raises:
            TargetError: there are fewer than the config asks for.
        """
        return targets

    def settled(self, targets: Sequence[str]) -> Self:
        """This config with the fields filled in that depend on which modules are adapted."""
        return self

    def at(self, module_name: str) -> Self:
        changes: dict[str, Any] = {}
        for key, field in self.pattern_fields.items():
            value = pattern_value(getattr(self, key) or {}, module_name)
            if value is not None:
                changes[field] = value
        for key in self.subset_fields:
            changes[key] = [name for name in getattr(self, key) if is_suffix(name, module_name)]
        return self.model_copy(update=changes) if changes else self


def is_suffix(suffix: str, name: str) -> bool:
    """Whether a module's name is ``suffix``, or ends with it after a dot."""
    return name == suffix or name.endswith(f".{suffix}")


def pattern_value(patterns: Mapping[str, Any], name: str) -> Any:
    """The value of the first pattern that matches ``name`` whole or after a dot, or None."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return None


def _as_indices(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | range) else value


Indices = Annotated[int | list[int], BeforeValidator(_as_indices)]


Token = Annotated[int, Field(ge=0)]
TokenIndices = Annotated[list[Token] | dict[str, list[Token]], BeforeValidator(_as_indices)]
"""Trained tokens: a list for the input embedding, or a list for each of some layers, by name or name suffix."""


def _as_ranges(value: Any) -> Any:
    value = _as_indices(value)
    return [_as_indices(pair) for pair in value] if isinstance(value, list) else value


def _is_range(pair: list[int]) -> list[int]:
    if pair[0] >= pair[1]:
        raise ValueError(f"a range [start, end) ends after it starts, not {pair}")
    return pair


Range = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2), AfterValidator(_is_range)]
Ranges = Annotated[list[Range], Field(min_length=1), BeforeValidator(_as_ranges)]
"""Ranges ``[start, end)`` of numbered layers."""


class IndexedLayerConfig(LayerConfig):
    """A `LayerConfig` that can be narrowed to some of a model's numbered layers."""

    layers_to_transform: Indices | None = Field(
        None, description="Index or indices of the layers to adapt; null adapts all."
    )
    layers_pattern: Names | str | None = Field(
        None, description="Name of the module list that layers_to_transform counts in, such as 'layers' or 'h'."
    )

    @model_validator(mode="after")
    def _indices_need_a_list(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules as a list of names, or null")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern is set, but layers_to_transform is not")
        patterns = self.layers_pattern or ()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            fault = pattern_fault(pattern)
            if fault:
                raise ValueError(f"layers_pattern: {pattern!r} is {fault}")
        return self
