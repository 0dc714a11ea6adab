"""Prefix tuning, prompt tuning, P-tuning and multitask prompts on a causal language model."""

import peft
import torch
from peft import (
    MultitaskPromptTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from tests.parity.bases import IDS, fill, llama, show

TOKENS = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
for config in (
    PrefixTuningConfig(**TOKENS),
    PromptTuningConfig(**TOKENS),
    PromptEncoderConfig(**TOKENS, encoder_hidden_size=8),
    MultitaskPromptTuningConfig(**TOKENS, num_tasks=2, num_ranks=1),
):
    name = type(config).__name__
    extra = {"task_ids": torch.tensor([0, 1, 0])} if name.startswith("Multi") else {}
    model = get_peft_model(llama(), config).eval()
    model.print_trainable_parameters()
    print(model.active_peft_config.num_layers, model.active_peft_config.token_dim)
    model.save_pretrained(f"out/drawn_{name}")
    if name == "PromptEncoderConfig":  # the encoder's weights are drawn; only the shapes are compared
        print(model.get_prompt_embedding_to_save("default").shape)
        continue
    fill(peft, model)
    out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS, **extra)
    show(out.loss, out.logits)
    with model.disable_adapter():
        show(model(input_ids=IDS).logits)
    if not extra:
        show(model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False))
    model.save_pretrained(f"out/{name}_filled")
    again = PeftModel.from_pretrained(llama(), f"out/{name}_filled")
    show(again(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS, **extra).loss)
