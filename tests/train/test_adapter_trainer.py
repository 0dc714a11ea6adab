"""`AdapterTrainer` is to our models what `transformers.Trainer` is to PEFT's, with the same numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import adapterkit
from adapterkit import AdaLoraConfig, AdapterTrainer, PeftModel
from adapterkit.errors import CapabilityError
from tests.parity.bases import IDS, llama

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it

FIELDS: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]}
START = {"init_lora_weights": False}  # both products move from the first step


class Rows(Dataset[dict[str, Any]]):
    """Sixteen rows of token ids, with a column that no model knows."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = IDS[index % len(IDS)].roll(index)
        return {"input_ids": row, "labels": row, "source": "here"}


def arguments(directory: Path, **options: Any) -> TrainingArguments:
    fixed: dict[str, Any] = {
        "output_dir": str(directory), "max_steps": 6, "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps",
        "save_strategy": "steps", "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "learning_rate": 1e-2, "logging_steps": 1, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**fixed, **options})


def trained(kind: type[Trainer], model: Any, directory: Path, *, resume: bool = False, **options: Any) -> Trainer:
    trainer = kind(model, arguments(directory, **options), train_dataset=Rows(), eval_dataset=Rows())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def ours(**fields: Any) -> PeftModel:
    torch.manual_seed(0)
    return adapterkit.get_peft_model(llama(), adapterkit.LoraConfig(**{**FIELDS, **fields}))


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_numbers_are_those_of_peft(tmp_path: Path, smoothing: float) -> None:
    model = ours(**START)
    model.save_pretrained(tmp_path / "start")
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "start", is_trainable=True)
    options = {"label_smoothing_factor": smoothing, "gradient_accumulation_steps": 2}
    trainers = [
        trained(AdapterTrainer, model, tmp_path / "ours", **options),
        trained(Trainer, theirs, tmp_path / "theirs", **options),
    ]
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in trainers]
    norms = [[entry["grad_norm"] for entry in t.state.log_history if "loss" in entry] for t in trainers]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    evaluated = [t.evaluate()["eval_loss"] for t in trainers]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)
    for step in (2, 4, 6):
        found, wanted = (weights(tmp_path / who / f"checkpoint-{step}") for who in ("ours", "theirs"))
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], atol=1e-4, rtol=1e-3)


def test_what_is_written_is_the_adapter(tmp_path: Path) -> None:
    trainer = trained(AdapterTrainer, ours(), tmp_path / "run")
    trainer.save_model(str(tmp_path / "last"))
    files = {path.name for path in (tmp_path / "last").iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors", "training_args.bin"}
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "last")
    torch.testing.assert_close(loaded(input_ids=IDS).logits, trainer.model.eval()(input_ids=IDS).logits)
    assert not (tmp_path / "run" / "checkpoint-6" / "model.safetensors").exists()


@pytest.mark.parametrize("fields", [{}, {"init_lora_weights": "pissa"}])
def test_a_training_goes_on_as_it_was(tmp_path: Path, fields: dict[str, Any]) -> None:
    whole = trained(AdapterTrainer, ours(**fields), tmp_path / "whole", max_steps=8)
    trained(AdapterTrainer, ours(**fields), tmp_path / "cut", max_steps=8, save_steps=6, num_train_epochs=2.0)
    again = trained(AdapterTrainer, ours(**fields), tmp_path / "cut", resume=True, max_steps=8)
    assert again.state.global_step == 8
    for ours_, theirs in zip(again._trainable().values(), whole._trainable().values(), strict=True):
        assert torch.equal(ours_, theirs)


def test_the_best_checkpoint_is_loaded(tmp_path: Path) -> None:
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 1.0}
    trainer = trained(AdapterTrainer, ours(), tmp_path / "run", **options)
    best = Path(trainer.state.best_model_checkpoint)
    trainer.save_model(str(tmp_path / "last"))
    for name, tensor in weights(best).items():
        assert torch.equal(tensor, weights(tmp_path / "last")[name])
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))


def test_several_adapters(tmp_path: Path) -> None:
    model = ours()
    model.add_adapter("second", adapterkit.LoraConfig(**FIELDS))
    model.set_adapter("second")
    trained(AdapterTrainer, model, tmp_path / "run", max_steps=2)
    fresh = ours()
    fresh.add_adapter("second", adapterkit.LoraConfig(**FIELDS))
    fresh.set_adapter("second")
    again = trained(AdapterTrainer, fresh, tmp_path / "run", resume=True, max_steps=2)
    for name, tensor in again._trainable().items():
        assert torch.equal(tensor, dict(model.named_parameters())[name]), name
    assert fresh.active_adapter == "second"


def test_ranks_are_allocated_on_the_way(tmp_path: Path) -> None:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_r=4, target_r=1, tinit=1, tfinal=1, deltaT=1,
        total_step=6,
    )  # fmt: skip
    model = adapterkit.get_peft_model(llama(), config)
    trained(AdapterTrainer, model, tmp_path / "run")
    ranks = [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]
    assert sum(ranks) < 4 * len(ranks)


def test_a_model_without_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="trains a PeftModel, and this is a LlamaForCausalLM"):
        AdapterTrainer(llama(), arguments(tmp_path), train_dataset=Rows(), eval_dataset=Rows())
