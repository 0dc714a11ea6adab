"""Adding, activating, disabling, deleting and loading adapters beside each other."""

import peft
from peft import LoraConfig, PeftModel, get_peft_model

from tests.parity.bases import X, fill, mlp, refused, show

first = LoraConfig(r=2, target_modules=["lin0"])
model = get_peft_model(mlp(), first, adapter_name="one")
model.add_adapter("two", LoraConfig(r=4, target_modules=["lin0", "lin1"], modules_to_save=["head"]))
for name in ("one", "two"):
    fill(peft, model, name)
model.eval()
print(list(model.peft_config), model.active_adapter, model.active_adapters, model.modules_to_save)
for name in ("one", "two"):
    model.set_adapter(name)
    show(model.active_adapter, model(X), model.get_nb_trainable_parameters())
with model.disable_adapter():
    show(model(X))
show(model.get_base_model()(X), model.active_peft_config.r)
refused(lambda: model.set_adapter("three"))
refused(lambda: model.add_adapter("one", first))
refused(lambda: model.delete_adapter("three"))
model.save_pretrained("out", selected_adapters=["one", "two"])
model.set_adapter("one")
model.delete_adapter("two")
show(list(model.peft_config), model(X))
again = PeftModel.from_pretrained(mlp(), "out/one", adapter_name="a")
again.load_adapter("out/two", adapter_name="b")
show(again.active_adapters, again(X))
again.set_adapter("b")
show(again(X))
loaded = PeftModel.from_pretrained(mlp(), "out", subfolder="two")
show(loaded(X), list(loaded.peft_config))
refused(lambda: again.load_adapter("nowhere/to/be/found", adapter_name="c"))
