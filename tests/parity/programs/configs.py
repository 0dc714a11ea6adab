"""Configs: made, written, read, by class and by dict."""

import json
from pathlib import Path

import peft
from peft import LoraConfig, PeftConfig, PeftType, TaskType, get_peft_config

from tests.parity.bases import refused, show

config = LoraConfig(r=4, lora_alpha=16, target_modules=["q"], task_type=TaskType.CAUSAL_LM, rank_pattern={"a": 2})
config.save_pretrained("out")
again = PeftConfig.from_pretrained("out")
show(type(again).__name__, again.r, again.lora_alpha, again.rank_pattern, list(again.target_modules), again.task_type)
show(again.peft_type == PeftType.LORA, again.inference_mode, again.is_prompt_learning)
LoraConfig(target_modules=["v"]).save_pretrained("out/deeper")
show(LoraConfig.from_pretrained("out", subfolder="deeper").target_modules)
show(json.loads(Path("out/adapter_config.json").read_text())["peft_type"])
DICTS = [
    {"peft_type": "LORA", "target_modules": ["q"], "r": 2},
    {"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": []},
    {"peft_type": "LOHA", "target_modules": ["q"], "r": 2},
    {"peft_type": "LOKR", "target_modules": ["q"], "r": 2},
    {"peft_type": "OFT", "target_modules": ["q"], "oft_block_size": 4},
    {"peft_type": "ADALORA", "target_modules": ["q"], "total_step": 10},
    {"peft_type": "POLY", "target_modules": ["q"]},
    {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
    {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    {"peft_type": "P_TUNING", "num_virtual_tokens": 3},
    {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 3},
    {"peft_type": "ADAPTION_PROMPT", "adapter_len": 2, "adapter_layers": 1},
]
for given in DICTS:
    made = get_peft_config(given)
    print(
        type(made).__name__,
        made.peft_type == given["peft_type"],
        all(
            set(getattr(made, k)) == set(v) if isinstance(v, list) else getattr(made, k) == v for k, v in given.items()
        ),
    )
refused(lambda: get_peft_config({"peft_type": "NOPE"}))
refused(lambda: get_peft_config({"r": 4}))
refused(lambda: LoraConfig(rank=4))
refused(lambda: LoraConfig(task_type="NOPE"))
refused(lambda: peft.PeftConfig.from_pretrained("nowhere/to/be/found"))
