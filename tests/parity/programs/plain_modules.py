"""`PeftModel` around modules that are no language models."""

import copy
import pickle

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.parity.bases import X, conv, fill, mlp, show

ids = torch.arange(8).reshape(2, 4)
model = PeftModel(conv(), LoraConfig(r=2, target_modules=["conv", "emb", "head"]))
print(type(model.base_model.model).__name__)
model.print_trainable_parameters()
fill(peft, model)
model.eval()
show(model(ids), copy.deepcopy(model)(ids), pickle.loads(pickle.dumps(model))(ids))
show(model.half().float()(ids), model.to("cpu")(ids))
model.save_pretrained("out")
show(PeftModel.from_pretrained(conv(), "out")(ids))
model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=r"lin\d"))
fill(peft, model)
show(model.eval()(X))
show(len(model.state_dict()) > 0, model.training)
