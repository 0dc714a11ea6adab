"""LoRA and prompt tuning on an encoder-decoder model, with generation."""

import peft
from peft import LoraConfig, PeftModel, PeftModelForSeq2SeqLM, PromptTuningConfig, TaskType, get_peft_model

from tests.parity.bases import IDS, fill, show, t5

for config in (
    LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=4, target_modules=["q", "v"]),
    PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=3),
):
    model = get_peft_model(t5(), config)
    print(isinstance(model, PeftModelForSeq2SeqLM))
    model.print_trainable_parameters()
    fill(peft, model)
    model.eval()
    out = model(input_ids=IDS, labels=IDS)
    show(out.loss, out.logits)
    show(model.generate(input_ids=IDS, max_new_tokens=5, do_sample=False))
    folder = f"out/{type(config).__name__}"
    model.save_pretrained(folder)
    show(PeftModel.from_pretrained(t5(), folder)(input_ids=IDS, labels=IDS).loss)
