"""One adapter put in the place of another."""

import peft
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from tests.parity.bases import X, fill, mlp, refused, show

for name, scale in (("one", 0.3), ("two", 0.6)):
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"]))
    fill(peft, model, scale=scale)
    model.save_pretrained(f"out/{name}")
model = PeftModel.from_pretrained(mlp(), "out/one")
show(model(X))
hotswap_adapter(model, "out/two", adapter_name="default")
show(model(X))
hotswap_adapter(model, "out/one", adapter_name="default", torch_device="cpu")
show(model(X))
refused(lambda: hotswap_adapter(model, "nowhere/to/be/found", adapter_name="default"))
