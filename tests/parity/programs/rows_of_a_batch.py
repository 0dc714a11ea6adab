"""A different adapter for every row of a batch."""

import peft
from peft import LoraConfig, get_peft_model

from tests.parity.bases import IDS, fill, llama, refused, show

model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]), "one")
model.add_adapter("two", LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj"]))
for name in ("one", "two"):
    fill(peft, model, name)
model.eval()
names = ["two", "__base__", "one"]
show(model(input_ids=IDS, adapter_names=names).logits)
show(model.generate(input_ids=IDS, adapter_names=names, max_new_tokens=3, do_sample=False))
show(model(input_ids=IDS).logits)
refused(lambda: model(input_ids=IDS, adapter_names=["one"]))
refused(lambda: model(input_ids=IDS, adapter_names=["one", "two", "three"]))
