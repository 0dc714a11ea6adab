"""The contract over every installed method and task, plugins included: nothing here names one."""

from __future__ import annotations

from adapterkit.config.layer import LayerConfig
from adapterkit.config.prompt import PromptConfig
from adapterkit.registry import methods, tasks
from adapterkit.testing import AdapterContract, PromptContract, TaskContract

for _name, _config in methods.items():
    if issubclass(_config, LayerConfig):
        _fields = {"config": _config(**_config.example)}
        globals()[f"TestMethod_{_name}"] = type(f"TestMethod_{_name}", (AdapterContract,), _fields)
    elif issubclass(_config, PromptConfig):
        _fields = {"config": _config(**_config.example)}
        globals()[f"TestMethod_{_name}"] = type(f"TestMethod_{_name}", (PromptContract,), _fields)

for _name, _config in tasks.items():
    globals()[f"TestTask_{_name}"] = type(f"TestTask_{_name}", (TaskContract,), {"config": _config(name=_name)})
