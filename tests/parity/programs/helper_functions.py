"""Helpers, the functional interface, and the optimizers by the names that they are imported by."""

import inspect

import peft
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.functional import cast_adapter_dtype, delete_adapter, set_adapter, set_requires_grad
from peft.helpers import (
    check_if_peft_model,
    disable_input_dtype_casting,
    rescale_adapter_scale,
    update_forward_signature,
    update_signature,
)
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from tests.parity.bases import IDS, X, fill, llama, mlp, refused, show, t5

for fields in ({}, {"use_dora": True}):
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"], **fields))
    fill(peft, model)
    model.eval()
    with torch.no_grad():
        for multiplier in (1, 0.5, 0, -2.0):
            with rescale_adapter_scale(model, multiplier):
                show(multiplier, model(X))
            show(model(X))
model.save_pretrained("out")
show(check_if_peft_model("out"), check_if_peft_model("nowhere/to/be/found"))
with disable_input_dtype_casting(model):
    show(model(X))
with disable_input_dtype_casting(model, active=False):
    show(model(X))
refused(lambda: rescale_adapter_scale(mlp(), 2).__enter__())
refused(lambda: rescale_adapter_scale(model, "half").__enter__())

model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])).eval()
update_forward_signature(model)
show(list(inspect.signature(model.forward).parameters)[:3], inspect.signature(model.generate) is not None)
show(model(input_ids=IDS).logits)
model = get_peft_model(t5(), LoraConfig(r=2, target_modules=["q"], task_type="SEQ_2_SEQ_LM")).eval()
update_signature(model, "generate")
show(list(inspect.signature(model.generate).parameters)[:2])
show(model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False))
refused(lambda: update_signature(model, "backward"))

model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["lin0"]), mlp(), "one")
model = inject_adapter_in_model(LoraConfig(r=3, target_modules=["lin0", "lin1"]), model, "two")
for name in ("one", "two"):
    fill(peft, model, name)
model.eval()
show(model(X))  # the last one alone
for names in ("one", "two", ["one", "two"]):
    set_adapter(model, names)
    show(model(X))
set_requires_grad(model, "one", False)
show(sum(p.numel() for p in model.parameters() if p.requires_grad))
set_adapter(model, "two", inference_mode=True)
show(sum(p.requires_grad for p in model.parameters()))
delete_adapter(model, "one", "lora_")
show(model(X))
model.half()
cast_adapter_dtype(model, "two", autocast_adapter_dtype=False)
show({str(p.dtype) for p in model.parameters()})
cast_adapter_dtype(model, "two")
show({str(p.dtype) for p in model.parameters()})

model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"]))
optimizer = create_loraplus_optimizer(model=model, optimizer_cls=torch.optim.Adam, lr=5e-5, loraplus_lr_ratio=16)
show(sorted((len(group["params"]), group["lr"]) for group in optimizer.param_groups))
print(type(create_lorafa_optimizer(model=model, r=2, lora_alpha=8, lr=7e-5)).__name__)
