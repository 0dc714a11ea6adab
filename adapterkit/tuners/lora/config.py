"""Names that PEFT's programs import from ``tuners.lora.config``."""

from adapterkit.methods.lora.config import LoraConfig
from adapterkit.methods.lora.starts import BdLoraConfig, CordaConfig, EvaConfig, LoftQConfig, LoraGAConfig

__all__ = ["BdLoraConfig", "CordaConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraGAConfig"]
