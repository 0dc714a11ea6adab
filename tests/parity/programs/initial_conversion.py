"""An adapter with its start taken away."""

import shutil

import peft
from peft import LoraConfig, PeftModel, get_peft_model

from tests.parity.bases import X, fill, mlp, show

for use_rslora in (False, True):
    folder = f"out/{use_rslora}"
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["lin0", "lin1"], use_rslora=use_rslora))
    fill(peft, model, scale=0.2)
    model.save_pretrained(f"{folder}/start")
    fill(peft, model, scale=0.5)
    model.save_pretrained(f"{folder}/difference", path_initial_model_for_weight_conversion=f"{folder}/start")
    again = PeftModel.from_pretrained(mlp(), f"{folder}/difference")
    show(again.peft_config["default"].r, again(X))
    shutil.rmtree(f"{folder}/start")
