"""Question answering with the documented LoRA dict."""

import peft
import torch
from peft import PeftModel, PeftModelForQuestionAnswering, get_peft_config

from tests.parity.bases import IDS, bert, fill, show

config = {
    "peft_type": "LORA", "task_type": "QUESTION_ANS", "inference_mode": False, "r": 4,
    "target_modules": ["query", "value"], "lora_alpha": 8, "lora_dropout": 0.05,
    "fan_in_fan_out": False, "bias": "none",
}  # fmt: skip
model = PeftModelForQuestionAnswering(bert("ForQuestionAnswering"), get_peft_config(config))
model.print_trainable_parameters()
fill(peft, model)
model.eval()
positions = torch.tensor([0, 1, 2])
out = model(input_ids=IDS, start_positions=positions, end_positions=positions)
show(out.loss, out.start_logits, out.end_logits)
model.save_pretrained("out")
again = PeftModel.from_pretrained(bert("ForQuestionAnswering"), "out")
show(type(again).__name__, again(input_ids=IDS).start_logits)
