"""Every layer method on a plain module: counts, outputs, files, merging."""

import peft
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model

from tests.parity.bases import X, fill, mlp, show

TARGETS = {"target_modules": ["lin1"]}
CONFIGS = {
    "lora": LoraConfig(**TARGETS, r=2),
    "dora": LoraConfig(**TARGETS, r=2, use_dora=True),
    "ia3": IA3Config(**TARGETS, feedforward_modules=[]),
    "ia3_feed_forward": IA3Config(**TARGETS, feedforward_modules=["lin1"]),
    "loha": LoHaConfig(**TARGETS, r=2),
    "lokr": LoKrConfig(**TARGETS, r=2),
    "oft": OFTConfig(**TARGETS, oft_block_size=4),
}
for name, config in CONFIGS.items():
    print(name)
    model = get_peft_model(mlp(), config)
    model.print_trainable_parameters()
    fill(peft, model)
    show(model.eval()(X))
    model.save_pretrained(f"out/{name}")
    show(PeftModel.from_pretrained(mlp(), f"out/{name}")(X))
    show(model.merge_and_unload()(X))
