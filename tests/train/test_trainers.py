"""`AdapterTrainer`, and trainers made with it, beside PEFT's models in plain ones: same losses, same files."""

from __future__ import annotations

import datasets
import pytest
import torch
import transformers

import adapterkit
from adapterkit import AdapterTrainer
from adapterkit.train.adapter_trainer import TRAINABLE
from tests.parity.bases import IDS, bert, fill, llama, t5
from tests.parity.helpers import peft, quiet

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}


class OursSeq2Seq(AdapterTrainer, transformers.Seq2SeqTrainer):
    pass


def adapted(library, base, method="Lora", **fields):
    with quiet():
        model = library.get_peft_model(base, getattr(library, f"{method}Config")(**fields))
        fill(library, model)
    return model


def rows(**columns):
    """Eight rows, with a column that no model takes."""
    masks = torch.ones_like(IDS).tolist()
    given = {"input_ids": IDS.tolist(), "attention_mask": masks, **columns, "source": ["a", "b", "c"]}
    whole = {name: (values * 3)[:8] for name, values in given.items()}
    return datasets.Dataset.from_dict(whole)


def trainer(library, model, data, kind="Trainer", **settings):
    common = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.1, "optim": "sgd", "seed": 0}
    quietly = {"output_dir": "out", "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    arguments = "Seq2SeqTrainingArguments" if kind.startswith("Seq") else "TrainingArguments"
    args = getattr(transformers, arguments)(**{**common, **quietly, "save_strategy": "no", **settings})
    ours = {"Trainer": AdapterTrainer, "Seq2SeqTrainer": OursSeq2Seq}
    with quiet():
        made = ours[kind] if library is adapterkit else getattr(transformers, kind)
        return made(model=model, args=args, train_dataset=data, eval_dataset=data)


def history(trainer):
    return [entry[key] for entry in trainer.state.log_history for key in ("loss", "eval_loss") if key in entry]


CASES = {
    "causal_lm": (llama, {**LORA, "task_type": "CAUSAL_LM"}, {"labels": IDS.tolist()}, {}),
    "tied": (lambda: llama(tie_word_embeddings=True), LORA, {"labels": IDS.tolist()}, {"save_strategy": "steps"}),
    "smoothed": (llama, LORA, {"labels": IDS.tolist()}, {"label_smoothing_factor": 0.1}),
    "accumulated": (llama, LORA, {"labels": IDS.tolist()}, {"gradient_accumulation_steps": 2}),
    "virtual_tokens": (llama, {**VIRTUAL, "method": "PromptTuning"}, {"labels": IDS.tolist()}, {}),
    "seq_cls": (
        lambda: bert("ForSequenceClassification"),
        {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"},
        {"label": [0, 1, 0]},
        {},
    ),
    "question_ans": (
        lambda: bert("ForQuestionAnswering"),
        {"r": 2, "target_modules": ["query"], "task_type": "QUESTION_ANS"},
        {"start_positions": [0, 1, 0], "end_positions": [2, 2, 3]},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_training_and_evaluation(tmp_path, monkeypatch, case):
    make, fields, columns, settings = CASES[case]
    monkeypatch.chdir(tmp_path)
    losses, labels = [], []
    for library in (adapterkit, peft):
        made = trainer(library, adapted(library, make(), **fields), rows(**columns), **settings)
        with quiet():
            made.train()
            losses.append([*history(made), made.evaluate()["eval_loss"]])
        labels.append(made.label_names)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert labels[0] == labels[1]


def test_generating_while_predicting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for library in (adapterkit, peft):
        model = adapted(library, t5(), task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"])
        settings = {"predict_with_generate": True, "generation_max_length": 5}
        made = trainer(library, model, rows(labels=IDS.tolist()), kind="Seq2SeqTrainer", **settings)
        with quiet():
            found.append(made.predict(made.eval_dataset).predictions.tolist())
    assert found[0] == found[1]


def test_checkpoints_hold_the_adapters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, files = [], []
    for library in (adapterkit, peft):
        settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        settings |= {"load_best_model_at_end": True, "output_dir": library.__name__, "max_steps": 3}
        model = adapted(library, llama(), task_type="CAUSAL_LM", **LORA)
        made = trainer(library, model, rows(labels=IDS.tolist()), **settings)
        with quiet():
            made.train()
            model = library.get_peft_model(llama(), library.LoraConfig(task_type="CAUSAL_LM", **LORA))
            again = trainer(library, model, rows(labels=IDS.tolist()), **settings, learning_rate=0.05)
            again.train(resume_from_checkpoint=f"{library.__name__}/checkpoint-2")
            found.append([*history(made), made.evaluate()["eval_loss"], *history(again)])
        files.append({path.name for path in (tmp_path / library.__name__ / "checkpoint-1").iterdir()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert files[0] == {*files[1], TRAINABLE}


def test_a_checkpoint_of_pefts_is_resumed_and_what_was_frozen_stays_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses = []
    for library in (peft, adapterkit):
        model = adapted(library, llama(), task_type="CAUSAL_LM", **LORA)
        with quiet():
            model.add_adapter("other", library.LoraConfig(task_type="CAUSAL_LM", **LORA))
            fill(library, model, "other")
        before = [name for name, p in model.named_parameters() if p.requires_grad]
        made = trainer(library, model, rows(labels=IDS.tolist()), save_strategy="steps", save_steps=1, max_steps=3)
        with quiet():
            made.train(resume_from_checkpoint=None if library is peft else "out/checkpoint-2")
        losses.append(history(made)[-1])
        assert [name for name, p in model.named_parameters() if p.requires_grad] == before
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_the_file_has_made_of_a_network_is_not_trained_in_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = adapterkit.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=8)
    data, losses = rows(labels=IDS.tolist()), []
    for start in (None, "out/checkpoint-2"):
        torch.manual_seed(0 if start is None else 1)
        made = trainer(
            adapterkit,
            adapterkit.get_peft_model(llama(), config),
            data,
            save_strategy="steps",
            save_steps=1,
            max_steps=3,
        )
        made.train(resume_from_checkpoint=start)
        losses.append(history(made)[-1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_columns_that_adapters_read_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = adapterkit.PolyConfig(r=2, n_tasks=3, n_skills=2, target_modules=["q_proj"])
    model = adapterkit.get_peft_model(llama(), config)
    made = trainer(adapterkit, model, rows(labels=IDS.tolist(), task_ids=[0, 1, 2]))
    made.train()
    assert set(made._get_collator_with_removed_columns(made.data_collator)([dict(made.train_dataset[0])])) == {
        "input_ids", "attention_mask", "labels", "task_ids",
    }  # fmt: skip
