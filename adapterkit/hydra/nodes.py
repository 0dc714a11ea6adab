"""Pydantic defaults as nodes of plain data, the form in which OmegaConf takes every field type."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from adapterkit.errors import BrokenPluginError
from adapterkit.registry import declared_as

MISSING = "???"


def node_from_model(model: type[BaseModel], *, exclude: frozenset[str] = frozenset()) -> DictConfig:
    """The defaults of ``model``, in JSON types; ``???`` for what has no default.

    Dictionaries stay open for new keys, whatever Hydra does to the rest.

    Raises:
        BrokenPluginError: a default is of no JSON type.
    """
    defaults = model.model_construct()
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    try:
        dumped = defaults.model_dump(mode="json", exclude=required | exclude, warnings=False)
    except PydanticSerializationError as error:
        wrong = next(name for name in model.model_fields if name not in required and not _is_json(defaults, name))
        raise BrokenPluginError(
            f"{declared_as(model)}: the default of {wrong!r}, {getattr(defaults, wrong)!r}, cannot be written to a "
            f"file: a JSON type is needed: {error}"
        ) from error
    names = [name for name in model.model_fields if name not in exclude]
    node = OmegaConf.create({name: MISSING if name in required else _escape(dumped[name]) for name in names})
    _open_dictionaries(node, defaults)
    return node


def _is_json(defaults: BaseModel, name: str) -> bool:
    try:
        defaults.model_dump(mode="json", include={name}, warnings=False)
    except PydanticSerializationError:
        return False
    return True


def plain(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """A composed config without Hydra's own node as plain data; `MISSING` where nothing has a value.

    Raises:
        omegaconf.errors.OmegaConfBaseException: an interpolation cannot be resolved.
    """
    data: dict[str, Any] = {}
    for key in (str(key) for key in config if key != "hydra"):
        if OmegaConf.is_missing(config, key):
            data[key] = MISSING
        elif OmegaConf.is_interpolation(config, key) and not resolve:
            data[key] = OmegaConf.to_container(config, resolve=False)[key]  # type: ignore[call-overload, index]
        else:
            value = config[key]
            data[key] = OmegaConf.to_container(value, resolve=resolve) if OmegaConf.is_config(value) else value
    return data


def _escape(value: Any) -> Any:
    """A default containing ``${`` must not become an interpolation."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    return value


def _open_dictionaries(node: DictConfig, defaults: BaseModel) -> None:
    for name in type(defaults).model_fields:
        value = getattr(defaults, name, None)
        if name not in node:
            continue
        if isinstance(value, dict):
            OmegaConf.set_struct(node[name], False)
        elif isinstance(value, BaseModel):
            _open_dictionaries(node[name], value)
