"""The documented dict for sequence classification, its head, its attributes."""

import peft
import torch
from peft import PeftModel, PeftModelForSequenceClassification, get_peft_config

from tests.parity.bases import IDS, bert, fill, show

config = {
    "peft_type": "PREFIX_TUNING", "task_type": "SEQ_CLS", "inference_mode": False, "num_virtual_tokens": 5,
    "token_dim": 16, "num_transformer_submodules": 1, "num_attention_heads": 2, "num_layers": 2,
    "encoder_hidden_size": 16, "prefix_projection": False,
}  # fmt: skip
model = PeftModelForSequenceClassification(bert("ForSequenceClassification"), get_peft_config(config))
model.print_trainable_parameters()
fill(peft, model)
model.eval()
labels = torch.tensor([0, 1, 1])
out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=labels)
show(out.loss, out.logits, model.cls_layer_name, "classifier" in model.modules_to_save, type(model.config).__name__)
show(model.get_prompt(batch_size=1) is not None, model.get_prompt_embedding_to_save("default"))
show(model.word_embeddings.weight.shape, model.transformer_backbone_name, model.prompt_tokens["default"].shape)
show(list(model.prompt_encoder))
model.save_pretrained("out")
again = PeftModel.from_pretrained(bert("ForSequenceClassification"), "out")
show(type(again).__name__, again(input_ids=IDS).logits)
