"""Names that PEFT's programs import from ``utils``, where they stand here. Imports nothing until it is asked."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "get_peft_model_state_dict": "adapterkit.checkpoint.state",
    "set_peft_model_state_dict": "adapterkit.checkpoint.state",
    "load_peft_weights": "adapterkit.checkpoint.files",
    "prepare_model_for_kbit_training": "adapterkit.kbit",
    "cast_mixed_precision_params": "adapterkit.kbit",
    "get_base_model_state_dict": "adapterkit.checkpoint.base_state",
    "set_base_model_state_dict": "adapterkit.checkpoint.base_state",
    "replace_lora_weights_loftq": "adapterkit.methods.lora.loftq",
    "PeftError": "adapterkit.errors:AdapterkitError",
    "NoMatchingPeftModuleError": "adapterkit.errors:TargetError",
    "TaskType": "adapterkit.config.types",
    "PeftType": "adapterkit.config.types",
    "infer_device": "adapterkit.kbit",
    "SAFETENSORS_WEIGHTS_NAME": "adapterkit.checkpoint.files:WEIGHTS_NAME",
    "WEIGHTS_NAME": "adapterkit.checkpoint.files:PICKLED_NAME",
    "CONFIG_NAME": "adapterkit.config.base",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
