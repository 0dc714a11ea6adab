"""Token classification with IA3, and with prompt tuning."""

import peft
import torch
from peft import IA3Config, PeftModelForTokenClassification, PromptTuningConfig, get_peft_model

from tests.parity.bases import IDS, bert, fill, show

targets = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
for config in (
    IA3Config(task_type="TOKEN_CLS", **targets),
    PromptTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=3),
):
    model = get_peft_model(bert("ForTokenClassification"), config)
    print(isinstance(model, PeftModelForTokenClassification))
    model.print_trainable_parameters()
    fill(peft, model)
    model.eval()
    if config.peft_type == "IA3":  # PEFT's labels do not grow with a prompt
        show(model(input_ids=IDS, labels=IDS % 2).loss)
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    show(logits[:, -IDS.shape[1] :])  # PEFT's have columns for virtual tokens, too
    if config.peft_type == "IA3":  # PEFT's cannot be disabled with a prompt
        with model.disable_adapter():
            show(model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits)
    model.save_pretrained(f"out/{config.peft_type}".replace("PeftType.", ""))
