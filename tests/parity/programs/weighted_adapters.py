"""Adapters combined by weight."""

import peft
from peft import IA3Config, LoraConfig, get_peft_model

from tests.parity.bases import X, fill, mlp, show

KINDS = {
    "svd": {}, "linear": {}, "cat": {}, "ties": {"density": 0.5}, "ties_svd": {"density": 0.5},
    "magnitude_prune": {"density": 0.5}, "magnitude_prune_svd": {"density": 0.5, "svd_rank": 3},
    "dare_linear": {"density": 1.0}, "dare_ties": {"density": 1.0}, "dare_linear_svd": {"density": 1.0},
    "dare_ties_svd": {"density": 1.0, "majority_sign_method": "frequency"},
}  # fmt: skip
config = LoraConfig(r=2, target_modules=["lin0", "lin1"])
model = get_peft_model(mlp(), config, "one")
model.add_adapter("two", config)
for name in ("one", "two"):
    fill(peft, model, name)
for kind, options in KINDS.items():
    model.add_weighted_adapter(["one", "two"], [0.6, 0.4], f"by_{kind}", combination_type=kind, **options)
    model.set_adapter(f"by_{kind}")
    show(kind, model.peft_config[f"by_{kind}"].r, model.eval()(X))
model.save_pretrained("out", selected_adapters=["by_cat", "by_linear"])
config = IA3Config(target_modules=["lin0", "lin1"], feedforward_modules=["lin1"])
model = get_peft_model(mlp(), config, "one")
model.add_adapter("two", config)
for name in ("one", "two"):
    fill(peft, model, name)
model.add_weighted_adapter(["one", "two"], [0.6, 0.4], "both")
model.set_adapter("both")
show(model.eval()(X))
