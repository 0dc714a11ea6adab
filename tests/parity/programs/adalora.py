"""AdaLoRA's budget, step by step."""

import peft
import torch
from peft import AdaLoraConfig, get_peft_model

from tests.parity.bases import X, fill, mlp, show

config = AdaLoraConfig(
    target_modules=["lin0", "lin1"], init_r=4, target_r=2, total_step=6, tinit=1, tfinal=2, deltaT=1, lora_alpha=8
)
model = get_peft_model(mlp(), config)
show(model.get_nb_trainable_parameters()[0])
fill(peft, model)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
for step in range(6):
    loss = model(X).square().mean()
    loss.backward()
    optimizer.step()
    model.base_model.update_and_allocate(step)
    optimizer.zero_grad()
    show(loss)
show(model.eval()(X))
