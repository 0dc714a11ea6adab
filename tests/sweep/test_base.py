"""Trials share one base model, and none of them can tell."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from adapterkit import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from adapterkit.config.run import DataConfig, ModelConfig
from adapterkit.registry import tasks
from adapterkit.sweep.base import BasePool
from adapterkit.train.inputs import read_inputs
from adapterkit.train.seeds import seed_everything
from tests.commandline import command
from tests.training import short_run

TASK = tasks["seq_cls"]()
METHODS = {
    "lora": LoraConfig(task_type="SEQ_CLS", target_modules=["query"]),
    "biases": LoraConfig(task_type="SEQ_CLS", target_modules=["query"], bias="all"),
    "saved": LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["pooler"]),
    "dora": LoraConfig(task_type="SEQ_CLS", target_modules=["value"], use_dora=True),
    "prefix": PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
}
IDS = torch.tensor([[1, 2, 3, 4]])


def tiny(config, task, **options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes, **options)).eval()


@pytest.fixture
def pool():
    torch.manual_seed(0)
    return BasePool(load=tiny)


def train_a_little(base, config):
    model = get_peft_model(base, config.model_copy())
    model.train()
    base.config.pad_token_id = 7
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(input_ids=IDS, labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    base.enable_input_require_grads()
    for module in base.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_gets_the_model_as_it_was_loaded(pool, method):
    with pool.lending() as lent:
        base = lent.load(ModelConfig(), TASK)
        state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        outputs, names = base(IDS).logits, [name for name, _ in base.named_modules()]
        train_a_little(base, METHODS[method])
    with pool.lending() as lent:
        again = lent.load(ModelConfig(), TASK)
        assert again is base
        assert pool.loads == 1
        assert [name for name, _ in again.named_modules()] == names
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
        assert torch.equal(again(IDS).logits, outputs)
        assert again.config.pad_token_id == BertConfig().pad_token_id
        assert not again.training
        assert not any(getattr(module, "gradient_checkpointing", False) for module in again.modules())
        assert all(p.requires_grad and p.grad is None for p in again.parameters())


def test_another_model_or_seed_is_another_base(pool):
    def loaded(**config):
        with pool.lending() as lent:
            lent.load(ModelConfig(**config), TASK)
        return pool.loads

    assert [loaded(), loaded(), loaded(dtype="float32"), loaded(), loaded()] == [1, 1, 2, 3, 3]
    torch.manual_seed(1)
    assert loaded() == 4


def test_options_of_the_data_are_part_of_a_base(pool):
    with pool.lending() as lent:
        lent.load(ModelConfig(), TASK, num_labels=3)
    with pool.lending() as lent:
        assert lent.load(ModelConfig(), TASK, num_labels=2).config.num_labels == 2
    assert pool.loads == 2


def test_a_base_that_was_changed_is_loaded_again(pool, caplog):
    with pool.lending() as lent, torch.no_grad():
        lent.load(ModelConfig(), TASK).classifier.bias.add_(1)
    assert "the trial changed its base model" in caplog.text
    with pool.lending() as lent:
        lent.load(ModelConfig(), TASK)
    assert pool.loads == 2


def test_a_change_of_one_number_is_noticed(pool):
    with pool.lending() as lent, torch.no_grad():
        weight = lent.load(ModelConfig(), TASK).get_input_embeddings().weight
        weight[weight.shape[0] // 2, 1] += 1e-3  # between those that the fingerprint looks at
    with pool.lending() as lent:
        lent.load(ModelConfig(), TASK)
    assert pool.loads == 2


def test_a_trial_decides_for_itself_whether_kernels_are_deterministic(pool):
    with pool.lending():
        seed_everything(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_failed_trial_costs_its_base(pool):
    def fail():
        with pool.lending() as lent:
            lent.load(ModelConfig(), TASK)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pool.lending() as lent:
        lent.load(ModelConfig(), TASK)
    assert pool.loads == 2


@dataclass
class Reading:
    """Stands in for `read_inputs`, and counts."""

    times: int = 0

    def __call__(self, config, method):
        self.times += 1
        return read_inputs(config, method)


def test_trials_share_tokenised_data_and_no_pipeline():
    pool, seen = BasePool(read=(reading := Reading())), []
    trials = [{}, {"seed": 3}, {"data": {"max_length": 6}}, {"method": PromptTuningConfig(num_virtual_tokens=2)}]
    for changes in trials:
        config = short_run("seq_cls").model_copy(update=changes)
        if "data" in changes:
            config.data = DataConfig(**changes["data"])
        with pool.lending() as lent:
            inputs = lent.read(config, config.method)
        inputs.pipeline.max_length -= 1
        seen.append((inputs.features("train"), inputs.pipeline))
    features, pipelines = zip(*seen, strict=True)
    assert features[0] is features[1]
    assert len({id(encoded) for encoded in features}) == len({id(pipeline) for pipeline in pipelines}) - 1 == 3
    assert pipelines[0].max_length == pipelines[1].max_length
    assert reading.times == 3


def test_trials_of_a_sweep_find_what_single_runs_find(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adapterkit.sweep.base.pool", pool := BasePool())
    argv = [
        "+method=lora",
        "task=seq_cls",
        "trainer=fast",
        "trainer.max_steps=6",
        "data=sample",
        "trainer.use_cpu=true",
    ]
    swept = command(capsys, "-m", *argv, "method.r=2,4")
    single = command(capsys, *argv, "method.r=4")
    assert (swept.code, single.code, pool.loads) == (0, 0, 1), swept.err + single.err
    (of_sweep,) = tmp_path.glob("multirun/*/*/1/summary.json")
    (of_run,) = tmp_path.glob("outputs/*/*/summary.json")
    found = [json.loads(path.read_text()) for path in (of_sweep, of_run)]
    assert found[0]["metrics"] == found[1]["metrics"]
    weights = [path.parent / "adapter" / "adapter_model.safetensors" for path in (of_sweep, of_run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert found[0]["trainable_parameters"] == found[1]["trainable_parameters"]
