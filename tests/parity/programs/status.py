"""The status of layers and models."""

import dataclasses

from peft import LoraConfig, get_layer_status, get_model_status, get_peft_model

from tests.parity.bases import mlp, show

model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"]))
model.add_adapter("other", LoraConfig(r=2, target_modules=["lin0"]))


def report():
    show(dataclasses.asdict(model.get_model_status()))
    for layer in model.get_layer_status():
        fields = dataclasses.asdict(layer)
        show({key: value for key, value in fields.items() if key != "active_adapters"})


report()
model.set_adapter("other")
report()
model.set_requires_grad("default", True)
report()
model.set_adapter("default")
model.merge_adapter()
show(get_model_status(model).merged_adapters, len(get_layer_status(model)))
with model.disable_adapter():
    show(get_model_status(model).enabled)
