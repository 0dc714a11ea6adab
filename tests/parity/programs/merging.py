"""Merging in place and for good, unmerging, unloading, and refusing what is not finite."""

import peft
import torch
from peft import LoraConfig, get_peft_model

from tests.parity.bases import X, fill, mlp, refused, show


def adapted(**fields):
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"], **fields))
    fill(peft, model)
    return model.eval()


for fields in ({}, {"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["head"]}):
    model = adapted(**fields)
    show(model(X))
    model.merge_adapter()
    show(model(X))
    model.unmerge_adapter()
    show(model(X))
    merged = model.merge_and_unload(progressbar=False, safe_merge=True)
    show(type(merged).__name__, merged(X), sorted(merged.state_dict()))
    if not {"bias", "modules_to_save"} & fields.keys():  # PEFT leaves trained biases and heads in the base
        show(adapted(**fields).unload()(X))
model = adapted()
model.merge_adapter(adapter_names=["default"], safe_merge=True)
show(model(X))
model = adapted()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.fill_(float("nan"))
refused(lambda: model.merge_and_unload(safe_merge=True))
for active, others in (("default", None), ("default", ["other"]), ("other", None), ("other", ["default"])):
    model = adapted()
    model.add_adapter("other", LoraConfig(r=3, target_modules=["lin1", "head"]))
    fill(peft, model, "other")
    model.set_adapter(active)
    model.merge_adapter(adapter_names=["other"])
    show(active, others, model.merge_and_unload(adapter_names=others)(X))  # beside what is merged
