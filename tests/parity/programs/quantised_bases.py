"""Preparing quantised and half-precision bases."""

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, cast_mixed_precision_params, get_peft_model, prepare_model_for_kbit_training

from tests.parity.bases import IDS, fill, llama, show

model = prepare_model_for_kbit_training(llama().to(torch.bfloat16))
show({str(p.dtype) for p in model.parameters()}, any(p.requires_grad for p in model.parameters()))
model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
cast_mixed_precision_params(model, dtype=torch.float16)
show({(p.requires_grad, str(p.dtype)) for p in model.parameters()})
llama(hidden_size=64, intermediate_size=64).save_pretrained("base")


def quantised():
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    options = {"quantization_config": settings, "device_map": "cpu", "dtype": torch.float32}
    return transformers.LlamaForCausalLM.from_pretrained("base", **options)


model = prepare_model_for_kbit_training(quantised(), gradient_checkpointing_kwargs={"use_reentrant": False})
model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))
model.print_trainable_parameters()
fill(peft, model)
model.train()
loss = model(input_ids=IDS, labels=IDS).loss
loss.backward()
show(round(loss.item(), 1))
model.save_pretrained("out")
show(PeftModel.from_pretrained(quantised(), "out").get_nb_trainable_parameters())
