"""LoRA-FA's law, its state, and both optimizers as options of a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import IA3Config, LoraConfig, create_lorafa_optimizer, get_peft_model
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import CapabilityError, ConfigError
from adapterkit.optimizers import optimizer_for


def model_of(**fields):
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "target_modules": ["0"], "init_lora_weights": False, **fields})
    return get_peft_model(nn.Sequential(nn.Linear(8, 6)), config)


def test_the_change_of_the_product_is_the_gradient_projected_onto_the_rows_of_a():
    model = model_of(lora_alpha=3)
    optimizer = create_lorafa_optimizer(model, 4, 3, lr=1.0)
    layer = model.base_model.layers["0"]
    adapter, x = layer.adapters["default"], torch.randn(5, 8)
    y = model(x)
    (g,) = torch.autograd.grad(y.sin().sum(), y, retain_graph=True)
    y.sin().sum().backward()
    a, whole = adapter.lora_A.weight, g.T @ x
    change = adapter.scaling * optimizer._gradient(adapter.lora_B.weight) @ a
    torch.testing.assert_close(change, whole @ torch.linalg.pinv(a) @ a, atol=1e-4, rtol=1e-4)


def test_its_state_is_saved_and_goes_on():
    def run(cut):
        model = model_of()
        optimizer = create_lorafa_optimizer(model, 4, 8, lr=0.1)
        for step in range(4):
            if step == cut:
                state = optimizer.state_dict()
                optimizer = create_lorafa_optimizer(model, 4, 8, lr=0.1)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            model(torch.ones(2, 8)).sin().sum().backward()
            optimizer.step()
        return model.base_model.layers["0"].adapters["default"].lora_B.weight

    assert torch.equal(run(cut=2), run(cut=None))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [({"r": 8}, ConfigError, "r=4, but adapter 'default' has 8"), ({"use_dora": True}, CapabilityError, "use_dora")],
)
def test_what_lorafa_cannot_honour(fields, error, match):
    with pytest.raises(error, match=match):
        create_lorafa_optimizer(model_of(**fields), 4, 8, lr=0.1)


def arguments(trainer, tmp_path):
    from transformers import TrainingArguments

    return TrainingArguments(str(tmp_path), optim=trainer.optim, learning_rate=trainer.learning_rate, use_cpu=True)


def test_options_of_a_run(tmp_path):
    model = model_of()
    trainer = TrainerConfig(loraplus_lr_ratio=4.0, learning_rate=0.5, optim="adamw_torch")
    optimizer = optimizer_for(model, trainer, arguments(trainer, tmp_path))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1e-6, 2.0, 2.0]
    trainer = TrainerConfig()
    assert optimizer_for(model, trainer, arguments(trainer, tmp_path)) is None
    trainer = TrainerConfig(lorafa=True, adam_beta2=0.9)
    optimizer = optimizer_for(model, trainer, arguments(trainer, tmp_path))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.9)
    assert model.get_nb_trainable_parameters()[0] == 6 * 4


def test_a_method_without_such_an_optimizer(tmp_path):
    model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), IA3Config(target_modules=["0"], feedforward_modules=[]))
    trainer = TrainerConfig(lorafa=True)
    with pytest.raises(ConfigError, match=r"trainer\.lorafa: IA3 has no such optimizer"):
        optimizer_for(model, trainer, arguments(trainer, tmp_path))


@pytest.mark.parametrize("fields", [{"lorafa": True, "loraplus_lr_ratio": 2.0}, {"lorafa": True, "optim": "sgd"}])
def test_options_that_contradict_each_other(fields):
    with pytest.raises(ValueError, match="exclude"):
        TrainerConfig(**fields)
