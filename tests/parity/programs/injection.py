"""Adapters in plain modules without a wrapper, and their state dicts."""

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

from tests.parity.bases import X, conv, mlp, show

model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["lin0", "lin1"], modules_to_save=["head"]), mlp())
print(type(model).__name__)
state = get_peft_model_state_dict(model)
show({key: tuple(tensor.shape) for key, tensor in sorted(state.items())})
fresh = {key: torch.full_like(tensor, 0.1) for key, tensor in state.items()}
result = set_peft_model_state_dict(model, fresh)
show(model.eval()(X), result.unexpected_keys)
config = LoraConfig(r=2, target_modules=["conv", "emb"])
model = inject_adapter_in_model(config, conv(), "other", low_cpu_mem_usage=True)
state = get_peft_model_state_dict(model, adapter_name="other")
show({key: (tuple(tensor.shape), str(tensor.device)) for key, tensor in sorted(state.items())})
fresh = {key: torch.full(tensor.shape, 0.1) for key, tensor in state.items()}
set_peft_model_state_dict(model, fresh, adapter_name="other", low_cpu_mem_usage=True)
show(model.eval()(torch.arange(6).reshape(2, 3)))
