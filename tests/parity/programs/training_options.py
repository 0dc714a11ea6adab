"""Gradient checkpointing, resized embeddings, trained tokens, layers and patterns."""

import peft
from peft import LoraConfig, PeftModel, get_peft_model

from tests.parity.bases import IDS, fill, llama, show

FIELDS = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "v_proj"]}
for reentrant in (True, False):
    base = llama()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model = get_peft_model(base, LoraConfig(**FIELDS))
    fill(peft, model)
    loss = model.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    show(loss, sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None))
for fields in (
    {"layers_to_transform": [1]}, {"layers_to_transform": 0, "layers_pattern": "layers"},
    {"rank_pattern": {"q_proj": 4}},
    {"alpha_pattern": {"layers.1.self_attn.v_proj": 32}}, {"exclude_modules": ["v_proj"]},
    {"trainable_token_indices": [3, 5]},
    {"init_lora_weights": "gaussian"}, {"modules_to_save": ["model.norm"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
):  # fmt: skip
    model = get_peft_model(llama(), LoraConfig(**{**FIELDS, **fields}))
    model.print_trainable_parameters()
    fill(peft, model)
    show(model.eval()(input_ids=IDS).logits)
base = llama()
base.resize_token_embeddings(40)
model = get_peft_model(base, LoraConfig(**FIELDS))
fill(peft, model)
show(model.eval()(input_ids=IDS).logits.shape)
model.save_pretrained("out", save_embedding_layers=True)
base = llama()
base.resize_token_embeddings(40)
show(PeftModel.from_pretrained(base, "out")(input_ids=IDS).logits[..., 32:].abs().sum() > 0)
