"""Defaults survive the way from Pydantic through OmegaConf and back; so does every value that is set on the way."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field

from adapterkit.config.run import RunConfig
from adapterkit.errors import BrokenPluginError
from adapterkit.hydra.nodes import MISSING, node_from_model, plain
from adapterkit.registry import KINDS

EVERY_CLASS = [registry[name] for registry in KINDS.values() for name in registry] + [RunConfig]


def validated(model: type[BaseModel], node: Any) -> BaseModel:
    return model.model_validate_json(json.dumps(OmegaConf.to_container(node, resolve=True)), strict=True)


@pytest.mark.parametrize("model", EVERY_CLASS, ids=lambda model: model.__name__)
def test_a_node_of_defaults_validates_to_the_defaults(model):
    node = node_from_model(model)
    required = {name: 1 for name, field in model.model_fields.items() if field.is_required()}
    assert {key for key in node if OmegaConf.is_missing(node, key)} == set(required)
    node.update(required)
    assert validated(model, node) == model(**required)
    assert validated(model, OmegaConf.create(OmegaConf.to_yaml(node))) == model(**required)


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    table: dict[str, int] = Field(default_factory=dict)


class Everything(BaseModel):
    """The kinds of field that a structured config of OmegaConf would refuse."""

    model_config = ConfigDict(extra="forbid", strict=True)

    needed: int
    literal: Literal["a", "b"] = "a"
    union: str | list[str] | None = None
    flag_or_name: bool | Literal["gaussian"] = True
    lists: dict[str, int | list[int]] = {"a.b": 1, "c": [1, 2]}
    pair: tuple[int, int] = (1, 2)
    enum: Colour = Colour.RED
    path: Path = Path("a/b")
    text: str = "null"
    digits: str = "1e5"
    dollar: str = "${not.one}"
    many: list[str] = ["yes", "${x}"]
    big: int = 2**60
    inner: Inner = Field(default_factory=Inner)


def test_every_kind_of_field_survives():
    node = node_from_model(Everything)
    assert OmegaConf.to_container(node)["needed"] == MISSING
    node.needed = 3
    for form in (node, OmegaConf.create(OmegaConf.to_yaml(node))):
        assert validated(Everything, form) == Everything(needed=3)


def test_dictionaries_take_new_keys_though_the_rest_is_closed():
    root = OmegaConf.create({"method": node_from_model(Everything)})
    OmegaConf.set_struct(root, True)
    root.method.lists["d.e"] = 4
    root.method.inner.table["f"] = 5
    with pytest.raises(Exception, match="not in struct"):
        root.method.unknown = 1


def test_a_default_that_no_file_can_hold_is_named():
    class Model(BaseModel):
        fine: int = 1
        wrong: object = print

    with pytest.raises(BrokenPluginError, match="Model: the default of 'wrong', <built-in function print>, cannot be"):
        node_from_model(Model)


def test_excluded_fields_are_left_out():
    assert "inner" not in node_from_model(Everything, exclude=frozenset({"inner"}))


def test_plain_data_leaves_out_hydra_and_keeps_what_is_missing():
    config = OmegaConf.create(
        {"hydra": {"a": "${no}"}, "x": "${y}", "y": 2, "z": {"w": "???", "v": "${x}"}, "u": "???"}
    )
    assert plain(config) == {"x": 2, "y": 2, "z": {"w": MISSING, "v": 2}, "u": MISSING}
    assert plain(config, resolve=False) == {"x": "${y}", "y": 2, "z": {"w": MISSING, "v": "${x}"}, "u": MISSING}


@given(st.dictionaries(st.text(min_size=1), st.integers(), max_size=5), st.text())
@settings(max_examples=50, deadline=None)
def test_any_default_survives(table, text):
    class Model(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        table: dict[str, int] = {}
        text: str = ""

    chosen = {"table": (dict[str, int], table), "text": (str, text)}
    model = type(
        "Chosen",
        (Model,),
        {"__annotations__": {k: t for k, (t, _) in chosen.items()}, **{k: v for k, (_, v) in chosen.items()}},
    )
    assert validated(model, node_from_model(model)) == model()
