"""A mixed model: several methods active at once."""

import peft
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftMixedModel, get_peft_model

from tests.parity.bases import X, fill, mlp, refused, show

TARGETS = {"target_modules": ["lin0", "lin1"], "r": 2}


def mixed():
    model = get_peft_model(mlp(), LoraConfig(**TARGETS), adapter_name="lora", mixed=True)
    model.add_adapter("loha", LoHaConfig(**TARGETS))
    model.add_adapter("lokr", LoKrConfig(**TARGETS))
    return model.eval()


for name, config in (("lora", LoraConfig(**TARGETS)), ("loha", LoHaConfig(**TARGETS))):
    one = get_peft_model(mlp(), config)
    fill(peft, one)
    one.save_pretrained(f"out/{name}")
print(type(mixed()).__name__)
mixed().print_trainable_parameters()


def loaded():
    model = PeftMixedModel.from_pretrained(mlp(), "out/lora", adapter_name="lora")
    model.load_adapter("out/loha", adapter_name="loha")
    model.set_adapter(["lora", "loha"])
    return model.eval()


model = loaded()
show(model.active_adapters, list(model.peft_config), model(X), model.get_nb_trainable_parameters())
for names in ("lora", "loha", ["loha", "lora"]):
    model.set_adapter(names)
    show(set(model.active_adapters), model(X))
with model.disable_adapter():
    show(model(X))
refused(lambda: model.set_adapter(["lora", "nope"]))
show(loaded().merge_and_unload(progressbar=False, safe_merge=True)(X))
show(loaded().merge_and_unload(adapter_names=["lora"])(X))
show(loaded().unload()(X))
model = loaded()
model.delete_adapter("loha")
show(list(model.peft_config), model(X))
