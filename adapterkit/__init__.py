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
    "PromptTuningConfig": "adapterkit.methods.prompt_tuning.config",
    "PromptEncoderConfig": "adapterkit.methods.p_tuning.config",
    "AdaptionPromptConfig": "adapterkit.methods.adaption_prompt.config",
    "MultitaskPromptTuningConfig": "adapterkit.methods.multitask_prompt_tuning.config",
    "PromptTuningInit": "adapterkit.methods.prompt_tuning.config",
    "MultitaskPromptTuningInit": "adapterkit.methods.multitask_prompt_tuning.config",
    "PromptEncoderReparameterizationType": "adapterkit.methods.p_tuning.config",
    "create_loraplus_optimizer": "adapterkit.methods.lora.optimizers",
    "create_lorafa_optimizer": "adapterkit.methods.lora.optimizers",
    "initialize_lora_eva_weights": "adapterkit.methods.lora.eva",
    "get_eva_state_dict": "adapterkit.methods.lora.eva",
    "convert_to_lora": "adapterkit.methods.lora.conversion",
    "save_as_lora": "adapterkit.methods.lora.conversion",
    "preprocess_corda": "adapterkit.methods.lora.corda",
    "preprocess_loraga": "adapterkit.methods.lora.loraga",
    "replace_lora_weights_loftq": "adapterkit.methods.lora.loftq",
    "EvaConfig": "adapterkit.methods.lora.starts",
    "CordaConfig": "adapterkit.methods.lora.starts",
    "LoraGAConfig": "adapterkit.methods.lora.starts",
    "LoftQConfig": "adapterkit.methods.lora.starts",
    "BdLoraConfig": "adapterkit.methods.lora.starts",
    "PeftConfig": "adapterkit.config.base",
    "TaskType": "adapterkit.config.types",
    "PeftType": "adapterkit.config.types",
    "PeftModel": "adapterkit.model",
    "PeftMixedModel": "adapterkit.mixed",
    "AdapterTrainer": "adapterkit.train.adapter_trainer",
    "PeftModelForCausalLM": "adapterkit.tasks.causal_lm.model",
    "PeftModelForFeatureExtraction": "adapterkit.tasks.feature_extraction.model",
    "PeftModelForQuestionAnswering": "adapterkit.tasks.question_ans.model",
    "PeftModelForSeq2SeqLM": "adapterkit.tasks.seq_2_seq_lm.model",
    "PeftModelForSequenceClassification": "adapterkit.tasks.seq_cls.model",
    "PeftModelForTokenClassification": "adapterkit.tasks.token_cls.model",
    "load_peft_weights": "adapterkit.checkpoint.files",
    "AutoPeftModel": "adapterkit.auto",
    "AutoPeftModelForCausalLM": "adapterkit.auto",
    "AutoPeftModelForFeatureExtraction": "adapterkit.auto",
    "AutoPeftModelForQuestionAnswering": "adapterkit.auto",
    "AutoPeftModelForSeq2SeqLM": "adapterkit.auto",
    "AutoPeftModelForSequenceClassification": "adapterkit.auto",
    "AutoPeftModelForTokenClassification": "adapterkit.auto",
    "cast_mixed_precision_params": "adapterkit.kbit",
    "prepare_model_for_kbit_training": "adapterkit.kbit",
    "hotswap_adapter": "adapterkit.hotswap",
    "prepare_model_for_compiled_hotswap": "adapterkit.hotswap",
    "get_layer_status": "adapterkit.status",
    "get_model_status": "adapterkit.status",
    "TunerLayerStatus": "adapterkit.status",
    "TunerModelStatus": "adapterkit.status",
    "get_peft_model": "adapterkit.build",
    "get_peft_config": "adapterkit.build",
    "inject_adapter_in_model": "adapterkit.build",
    "get_peft_model_state_dict": "adapterkit.checkpoint.state",
    "set_peft_model_state_dict": "adapterkit.checkpoint.state",
    "get_base_model_state_dict": "adapterkit.checkpoint.base_state",
    "set_base_model_state_dict": "adapterkit.checkpoint.base_state",
    **{
        f"{name}Model": "adapterkit.injection.tuner:Tuner"
        for name in ("Lora", "AdaLora", "IA3", "LoHa", "LoKr", "OFT", "Poly", "AdaptionPrompt")
    },
    "PeftError": "adapterkit.errors:AdapterkitError",
    "NoMatchingPeftModuleError": "adapterkit.errors:TargetError",
}
__all__ = sorted(["__version__", *_EXPORTS])


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
