"""Laws of a method's config: declared, torch-free, strict, and the same after any round trip."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from adapterkit.config.base import PeftConfig
from adapterkit.errors import ConfigError
from adapterkit.registry import KINDS, methods

_WITHOUT_TORCH = """
import json, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, NoTorch())
from adapterkit.registry import KINDS

failed = {}
for kind, registry in KINDS.items():
    for plugins in registry.declared.values():
        for plugin in plugins:
            try:
                plugin.load().model_json_schema()
            except Exception as error:
                failed[f"{kind} {plugin.entry.value}"] = str(error)
print(json.dumps(failed))
"""


@cache
def needing_torch() -> dict[str, str]:
    """The installed plugins whose config class cannot be imported without torch: ``"method module:Class"`` -> why."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT_TORCH], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def declaration(kind: str, plugin: type[Any]) -> str:
    """``"method module:Class"``, as `needing_torch` names it."""
    return f"{kind} {plugin.__module__}:{plugin.__qualname__}"


class ConfigLaws:
    """The config says what it is, refuses what it does not know, and survives files."""

    config: ClassVar[PeftConfig]

    def test_is_declared_under_its_own_name(self) -> None:
        name = self.config.peft_type
        assert name == name.upper()
        assert methods[name.lower()] is type(self.config)
        assert KINDS["method"] is methods

    def test_needs_no_torch(self) -> None:
        assert declaration("method", type(self.config)) not in needing_torch()

    def test_every_field_is_described(self) -> None:
        missing = [name for name, field in type(self.config).model_fields.items() if not field.description]
        assert not missing

    def test_json_round_trip(self, tmp_path: Path) -> None:
        self.config.save_pretrained(tmp_path)
        loaded = PeftConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(self.config)
        assert self.meaning(loaded) == self.meaning(self.config)

    def test_yaml_round_trip(self) -> None:
        from omegaconf import OmegaConf

        node = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(self.config.model_dump(mode="json"))))
        assert PeftConfig.from_dict(OmegaConf.to_container(node)) == self.config  # type: ignore[arg-type]

    def test_hydra_round_trip(self) -> None:
        from omegaconf import OmegaConf

        from adapterkit.hydra.nodes import node_from_model

        node = node_from_model(type(self.config))
        node.merge_with(OmegaConf.create(self.config.model_dump(mode="json")))
        assert type(self.config).model_validate(OmegaConf.to_container(node, resolve=True)) == self.config

    def test_unknown_keys_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="no_such_key"):
            type(self.config).model_validate({**self.config.model_dump(), "no_such_key": 1})
        with pytest.raises(ConfigError, match="no_such_key"):
            PeftConfig.from_dict({**self.config.to_dict(), "no_such_key": 1})

    def test_assignments_are_checked(self) -> None:
        config = self.config.model_copy()
        with pytest.raises(ValidationError):
            config.inference_mode = "no"  # type: ignore[assignment]
        assert config == self.config

    @staticmethod
    def meaning(config: PeftConfig) -> dict[str, Any]:
        """The fields that a file keeps as they are."""
        return {k: v for k, v in config.to_dict().items() if k not in ("inference_mode", "peft_version")}
