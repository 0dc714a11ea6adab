"""Where PEFT's programs import `preprocess_corda` from."""

from adapterkit.methods.lora.corda import preprocess_corda

__all__ = ["preprocess_corda"]
