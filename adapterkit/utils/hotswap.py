"""`hotswap_adapter` and what prepares for it, where PEFT's programs import them from."""

from adapterkit.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

__all__ = ["hotswap_adapter", "prepare_model_for_compiled_hotswap"]
