"""Parameter-efficient fine-tuning as a declarative config-and-registry framework.

Importing this package imports neither torch nor any method: names are resolved when they are used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "IA3Config": "adapterkit.methods.ia3.config",
    "LoHaConfig": "adapterkit.methods.loha.config",
    "LoKrConfig": "adapterkit.methods.lokr.config",
    "OFTConfig": "adapterkit.methods.oft.config",
    "AdaLoraConfig": "adapterkit.methods.adalora.config",
    "PolyConfig": "adapterkit.methods.poly.config",
    "LoraConfig": "adapterkit.methods.lora.config",
    "PrefixTuningConfig": "adapterkit.methods.prefix_tuning.config",
    "PeftConfig": "adapterkit.config.base",
    "TaskType": "adapterkit.config.types",
    "PeftType": "adapterkit.config.types",
    "PeftModel": "adapterkit.model",
    "PeftMixedModel": "adapterkit.mixed",
    "load_peft_weights": "adapterkit.saving",
    "get_layer_status": "adapterkit.status",
    "get_model_status": "adapterkit.status",
    "TunerLayerStatus": "adapterkit.status",
    "TunerModelStatus": "adapterkit.status",
    "get_peft_model": "adapterkit.build",
    "get_peft_config": "adapterkit.build",
    "inject_adapter_in_model": "adapterkit.build",
    "get_peft_model_state_dict": "adapterkit.checkpoint",
    "set_peft_model_state_dict": "adapterkit.checkpoint",
}
__all__ = sorted(["__version__", *_EXPORTS])


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
