"""TRL's trainers mixed with `AdapterTrainer`, beside PEFT's models in plain ones: same losses, same files."""

from __future__ import annotations

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import adapterkit
from adapterkit import AdapterTrainer, PeftModel
from adapterkit.train.adapter_trainer import TRAINABLE
from tests.parity.bases import SIZES, llama
from tests.parity.helpers import peft, peft_model, quiet

with quiet():
    import trl

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(SIZES["vocab_size"] - 2))]
FIELDS = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "up_proj"]}


def text(start, count):
    return " ".join(WORDS[2 + (start + i) % (len(WORDS) - 2)] for i in range(count))


def tokenizer():
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


ROWS = {
    "SFT": lambda i: {"text": text(i, 4 + i % 3)},
    "DPO": lambda i: {"prompt": text(i, 3), "chosen": " " + text(i + 3, 3), "rejected": " " + text(i + 9, 2 + i % 2)},
    "KTO": lambda i: {"prompt": text(i, 3), "completion": " " + text(i + 3, 3), "label": i % 2 == 0},
}


@pytest.mark.parametrize("kind", ROWS)
def test_training_and_files(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with quiet():
        peft_model(peft.LoraConfig(**FIELDS), llama()).save_pretrained("start")
    data = datasets.Dataset.from_list([ROWS[kind](i) for i in range(16)])
    plain, settings = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    losses, files = [], []
    for library, base in ((peft, plain), (adapterkit, type("Ours", (AdapterTrainer, plain), {}))):
        with quiet():
            args = settings(
                output_dir=library.__name__, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                learning_rate=0.1, optim="sgd", logging_steps=1, eval_strategy="steps", eval_steps=3, save_steps=3,
                report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
            )  # fmt: skip
            model = library.PeftModel.from_pretrained(llama(), "start", is_trainable=True)
            made = base(model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer())
            made.train()
        losses.append([entry[key] for entry in made.state.log_history for key in ("loss", "eval_loss") if key in entry])
        files.append({path.name for path in (tmp_path / library.__name__ / "checkpoint-3").iterdir()})
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert files[1] - files[0] == {TRAINABLE}
    assert PeftModel.from_pretrained(llama(), "adapterkit/checkpoint-3").peft_config
