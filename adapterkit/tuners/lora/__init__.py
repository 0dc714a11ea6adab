"""Names that PEFT's programs import from ``tuners.lora``."""

from adapterkit.injection.tuner import Tuner as LoraModel
from adapterkit.methods.lora.conversion import convert_to_lora, save_as_lora
from adapterkit.methods.lora.eva import get_eva_state_dict, initialize_lora_eva_weights
from adapterkit.methods.lora.loraga import preprocess_loraga
from adapterkit.tuners.lora.config import BdLoraConfig, EvaConfig, LoftQConfig, LoraConfig, LoraGAConfig

__all__ = [
    "BdLoraConfig", "EvaConfig", "LoftQConfig", "LoraConfig", "LoraGAConfig", "LoraModel", "convert_to_lora",
    "get_eva_state_dict", "initialize_lora_eva_weights", "preprocess_loraga", "save_as_lora",
]  # fmt: skip
