"""A loop of accelerate's, and an adapter that is read again over itself."""

import accelerate
import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.parity.bases import IDS, fill, llama, show

config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
accelerator = accelerate.Accelerator(cpu=True)
model = get_peft_model(llama(), config)
model.add_adapter("other", config)
for name in ("default", "other"):
    fill(peft, model, name)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
for _ in range(2):
    loss = model(input_ids=IDS, labels=IDS).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    show(loss)
model = accelerator.unwrap_model(model)
state = accelerator.get_state_dict(model)
model.save_pretrained("out", is_main_process=True, save_function=accelerator.save, state_dict=state)
again = PeftModel.from_pretrained(llama(), "out")
show(again(input_ids=IDS).logits)


def trained():
    return {name for name in ("default", "other") for n, p in model.named_parameters() if p.requires_grad and name in n}


for folder, name, is_trainable in (("out/other", "other", False), ("out", "default", False), ("out", "other", True)):
    model.load_adapter(folder, name, is_trainable=is_trainable)
    show(trained(), model.active_adapter)
