"""``schema``: JSON Schema for editors, of a whole run and of the partial files that presets and experiments are."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from pydantic import create_model

from adapterkit.cli.listing import survey
from adapterkit.cli.options import Options
from adapterkit.config.run import RunConfig
from adapterkit.errors import EXIT_OK, ConfigError
from adapterkit.files import write_text
from adapterkit.registry import KINDS

INTERPOLATION = {"type": "string", "pattern": r"\$\{|^\?\?\?$", "description": "An interpolation, or ??? for later."}
DEFAULTS = {
    "type": "array",
    "description": "Hydra's defaults list: what this file is put on top of.",
    "items": {"anyOf": [{"type": "string"}, {"type": "object"}]},
}
SCALARS = ("integer", "number", "boolean")

Schema = dict[str, Any]


def schema(arguments: Sequence[str]) -> int:
    """``schema [--to OUT]``: print the schema of a run, or write all of them.

    Raises:
        ConfigError: the directory cannot be written to.
    """
    options = Options("schema", "[--to OUT]", "Print the JSON Schema of a run's configuration, for editors.")
    options.add_argument(
        "--to", type=Path, metavar="OUT", help="the directory to write: schemas of run, experiment, method and task"
    )
    directory = options.read(arguments).to
    if directory is None:
        print(json.dumps(run_schema(), indent=2))
        return EXIT_OK
    for name, content in (("run", run_schema()), ("experiment", experiment_schema()), *_preset_schemas()):
        path = directory / f"{name}.schema.json"
        try:
            write_text(path, json.dumps(content, indent=2))
        except OSError as error:
            raise ConfigError(f"--to={directory}: not a directory that can be written to: {error}") from error
        print(f"wrote {path}")
    return EXIT_OK


def run_schema() -> Schema:
    """A whole run, of the plugins that can be imported: a method is known by its ``peft_type``, a task by ``name``."""
    unions: dict[str, Any] = {kind: (_union(kind), ...) for kind in KINDS}
    return create_model("RunConfig", __base__=RunConfig, **unions).model_json_schema()


def _union(kind: str) -> Any:
    loaded = (state.plugin.load() for state in survey() if state.plugin.kind == kind and state.status == "ok")
    return reduce(or_, loaded)


def experiment_schema() -> Schema:
    """A file of ``conf/experiment/``: every key optional, interpolations welcome, a defaults list."""
    found: Schema = _partial(run_schema())
    found["title"] = "adapterkit experiment"
    found["properties"] |= {"defaults": DEFAULTS, "hydra": {"type": "object"}}
    return found


def _preset_schemas() -> list[tuple[str, Schema]]:
    return [(kind, preset_schema(kind)) for kind in KINDS]


def preset_schema(kind: str) -> Schema:
    """A file of ``conf/method/`` or ``conf/task/``: the keys of any one plugin."""
    whole = experiment_schema()
    block = whole["properties"][kind]
    definitions = whole["$defs"]
    options = []
    for reference in block.get("anyOf", [block]):
        option = copy.deepcopy(definitions[reference["$ref"].rpartition("/")[2]])
        option["properties"]["defaults"] = DEFAULTS
        options.append(option)
    return {"title": f"adapterkit {kind} preset", "anyOf": options, "$defs": definitions}


def _partial(node: Any) -> Any:
    """A schema without requirements, in which every scalar may also be an interpolation."""
    if isinstance(node, list):
        return [_partial(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _partial_part(key, value) for key, value in node.items() if key not in ("required", "discriminator")}
    if node.get("type") not in SCALARS and not {"enum", "const"} & node.keys():
        return found
    kept = {key: found.pop(key) for key in ("description", "title", "default") if key in found}
    return {**kept, "anyOf": [found, INTERPOLATION]}


def _partial_part(key: str, value: Any) -> Any:
    if key in ("properties", "$defs"):
        return {name: _partial(part) for name, part in value.items()}
    return (
        _partial(value) if key in ("anyOf", "oneOf", "allOf", "items", "prefixItems", "additionalProperties") else value
    )
