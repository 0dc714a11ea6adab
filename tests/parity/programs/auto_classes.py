"""A base model and its adapter loaded together."""

import peft
import transformers
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
    LoraConfig,
    get_peft_model,
)

from tests.parity.bases import IDS, bert, fill, llama, refused, show, t5

CASES = {
    "CAUSAL_LM": (AutoPeftModelForCausalLM, llama, ["q_proj"], {}),
    "SEQ_2_SEQ_LM": (AutoPeftModelForSeq2SeqLM, t5, ["q"], {"labels": IDS}),
    "SEQ_CLS": (AutoPeftModelForSequenceClassification, lambda: bert("ForSequenceClassification"), ["query"], {}),
    "TOKEN_CLS": (AutoPeftModelForTokenClassification, lambda: bert("ForTokenClassification"), ["query"], {}),
    "QUESTION_ANS": (AutoPeftModelForQuestionAnswering, lambda: bert("ForQuestionAnswering"), ["query"], {}),
    "FEATURE_EXTRACTION": (AutoPeftModelForFeatureExtraction, bert, ["query"], {}),
}
for task, (auto, make, targets, inputs) in CASES.items():
    made = make()
    made.save_pretrained(f"out/base_{task}")
    base = type(made).from_pretrained(f"out/base_{task}")
    model = get_peft_model(base, LoraConfig(task_type=task, r=2, target_modules=targets))
    fill(peft, model)
    model.save_pretrained(f"out/{task}")
    again = auto.from_pretrained(f"out/{task}")
    show(type(again).__name__, again(input_ids=IDS, **inputs)[0 if not inputs else 1])
refused(lambda: AutoPeftModelForCausalLM.from_pretrained("out/SEQ_CLS"))
base = transformers.LlamaForCausalLM.from_pretrained("out/base_CAUSAL_LM")
model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
fill(peft, model)
model.save_pretrained("out/no_task")
show(AutoPeftModel.from_pretrained("out/no_task")(input_ids=IDS).logits)
