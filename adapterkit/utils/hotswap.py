"""`hotswap_adapter`, where PEFT's programs import it from."""

from adapterkit.hotswap import hotswap_adapter

__all__ = ["hotswap_adapter"]
