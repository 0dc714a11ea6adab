"""Train, save, load and generate with LoRA on a causal language model."""

import peft
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from tests.parity.bases import IDS, fill, llama, show

config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
model = get_peft_model(llama(), config)
print(type(model).__name__)
model.print_trainable_parameters()
fill(peft, model)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for _ in range(3):
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    show(loss)
model.eval()
model.save_pretrained("out")
again = PeftModel.from_pretrained(llama(), "out")
show(type(again).__name__, again(input_ids=IDS).logits, again.active_adapter, again.get_nb_trainable_parameters())
show(again.generate(input_ids=IDS, max_new_tokens=4, do_sample=False))
show(PeftModel.from_pretrained(llama(), "out", is_trainable=True).get_nb_trainable_parameters())
