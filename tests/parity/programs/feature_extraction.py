"""Feature extraction with LoRA on all linear layers."""

import peft
from peft import LoraConfig, PeftModelForFeatureExtraction, get_peft_model

from tests.parity.bases import IDS, bert, fill, show

model = get_peft_model(bert(), LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules="all-linear", bias="all"))
print(isinstance(model, PeftModelForFeatureExtraction))
show(model.get_nb_trainable_parameters()[0])
fill(peft, model, scale=0.1)
show(model.eval()(input_ids=IDS).last_hidden_state, type(model.get_base_model()).__name__)
model.save_pretrained("out")
