"""Starts that look at data first, by the names that PEFT's examples import."""

from functools import partial

import torch
from peft import LoraConfig as PlainConfig
from peft import get_peft_model, get_peft_model_state_dict
from peft.tuners import PromptTuningConfig
from peft.tuners.lora import EvaConfig, LoraModel, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, LoraConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.utils import infer_device

from tests.parity.bases import IDS, llama, show

show(infer_device(), LoraConfig is PlainConfig, PromptTuningConfig(num_virtual_tokens=2).num_virtual_tokens)
SIZES = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
for method in ("kpm", "ipm"):
    base = llama()
    before = base(input_ids=IDS).logits
    config = LoraConfig(init_lora_weights="corda", corda_config=CordaConfig(corda_method=method), **SIZES)
    preprocess_corda(base, config, run_model=partial(base, input_ids=torch.arange(32)[None]))
    model = get_peft_model(base, config).eval()
    show(torch.allclose(model(input_ids=IDS).logits, before, atol=1e-4), isinstance(model.base_model, LoraModel))
config = LoraConfig(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0), task_type="CAUSAL_LM", **SIZES)
model = get_peft_model(llama(), config, low_cpu_mem_usage=True)
initialize_lora_eva_weights(model, [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}] * 3)
show({key: tuple(tensor.shape) for key, tensor in sorted(get_peft_model_state_dict(model).items())})
show(model.eval()(input_ids=IDS).logits)
