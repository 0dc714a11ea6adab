"""What layers and configs are asked for by name: tensors, scales, targets, the classes around a model, errors."""

import copy

import peft
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    LoraModel,
    NoMatchingPeftModuleError,
    PeftConfig,
    PeftError,
    PeftType,
    PromptTuningConfig,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)

from tests.parity.bases import IDS, X, conv, fill, llama, mlp, refused, show

model = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["lin0"]), mlp(), low_cpu_mem_usage=True)
state = get_peft_model_state_dict(inject_adapter_in_model(LoraConfig(r=2, target_modules=["lin0"]), mlp()))
show(model.lin0.lora_A["default"].weight.device.type)
set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
show(model.lin0.lora_A["default"].weight.device.type, tuple(model.lin0.lora_B["default"].weight.shape))
show(model.lin0.scaling["default"], model.lin0.r["default"], model.lin0.weight.shape, model.lin0.in_features)
show(hasattr(model.lin0, "lora_A"), hasattr(model.lin0, "ia3_l"), hasattr(model.lin1, "lora_A"))
model = get_peft_model(conv(), LoraConfig(r=2, target_modules=["emb", "conv"]))
show(model.base_model.model.emb.lora_embedding_A["default"].shape)
model = get_peft_model(mlp(), IA3Config(target_modules=["lin0"], feedforward_modules=[]))
show(model.base_model.model.lin0.ia3_l["default"].shape)
model = get_peft_model(mlp(), LoHaConfig(r=2, target_modules=["lin0", "lin1"]))
show(sorted(model.base_model.model.lin0.hada_w1_a), model.base_model.model.lin0.scaling["default"])
show(model.supports_lora_conversion(), model.base_model.supports_lora_conversion())
show(copy.deepcopy(model).targeted_module_names, model.base_model.targeted_module_names)

given = LoraConfig(r=2, target_modules=["nothing like this"], exclude_modules=["lin1"])
saved = get_peft_model_state_dict(get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin1", "head"])))
model = inject_adapter_in_model(
    given, mlp(), state_dict={k.removeprefix("base_model.model."): v for k, v in saved.items()}
)
show(sorted(get_peft_model_state_dict(model)))

model = LoraModel(mlp(), LoraConfig(r=2, target_modules=["lin0"]), "default")
show(isinstance(model, LoraModel), list(model.peft_config), model.active_adapters, model(X))
model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0"]))
show(isinstance(model.base_model, LoraModel), model.peft_type == PeftType.LORA)
for error in (NoMatchingPeftModuleError, PeftError, ValueError):
    try:
        get_peft_model(mlp(), LoraConfig(target_modules=["nothing like this"]))
    except error:
        print("caught")
config = PeftConfig.from_peft_type(peft_type="LORA", r=3, target_modules=["lin0"])
show(type(config).__name__, config.r, config.is_adaption_prompt, config.is_prompt_learning)
show(AdaptionPromptConfig(adapter_len=2, adapter_layers=1).is_adaption_prompt)

config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
model = get_peft_model(llama(), config)
fill(peft, model)
own, plain = get_base_model_state_dict(model), llama().state_dict()
show(sorted(own) == sorted(plain), all(torch.equal(own[key], plain[key]) for key in own))
result = set_base_model_state_dict(model, {key: 2 * tensor for key, tensor in plain.items()})
show(result.missing_keys, result.unexpected_keys, model.eval()(input_ids=IDS).logits)
refused(lambda: set_base_model_state_dict(model, {"head": torch.ones(1)}))
result = set_base_model_state_dict(model, {"head": torch.ones(1)}, strict=False)
show(sorted(result.missing_keys) == sorted(plain), result.unexpected_keys)
model = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
show(sorted(get_base_model_state_dict(model)) == sorted(plain))
