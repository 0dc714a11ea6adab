"""What is written: pickles, folders, cards, embeddings, given state dicts."""

import peft
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights

from tests.parity.bases import IDS, fill, llama, show

config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
model = get_peft_model(llama(), config)
model.add_adapter("second", config)
for name in ("default", "second"):
    fill(peft, model, name)
model.eval().save_pretrained("out/all")
model.save_pretrained("out/pickled", safe_serialization=False)
model.save_pretrained("out/one", selected_adapters=["second"])
model.save_pretrained("out/embeddings", save_embedding_layers=True, selected_adapters=["default"])
model.save_pretrained("out/none", is_main_process=False)
doubled = {key: 2 * tensor for key, tensor in model.state_dict().items()}
model.save_pretrained("out/given", state_dict=doubled, selected_adapters=["default"])
model.create_or_update_model_card("out/all")
for folder in ("all", "pickled", "embeddings", "given"):
    state = load_peft_weights(f"out/{folder}", device="cpu")
    show(folder, {key: round(float(tensor.sum()), 3) for key, tensor in sorted(state.items())})
    show(PeftModel.from_pretrained(llama(), f"out/{folder}")(input_ids=IDS).logits)
show(sorted(get_peft_model_state_dict(model, save_embedding_layers=True)))
model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens", "lm_head"]))
fill(peft, model)
show(sorted(get_peft_model_state_dict(model)))
