"""What is AdaLoRA's own: the budget, the choice of ranks, going on after an interruption, and what files hold."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from adapterkit import AdaLoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from adapterkit.errors import CheckpointError, StateError
from adapterkit.methods.adalora.schedule import budget, off_orthogonal

SETTINGS = {"init_r": 4, "target_r": 2, "tfinal": 2, "target_modules": ["0", "2"]}


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))


def adapted(**settings):
    torch.manual_seed(1)
    return get_peft_model(base(), AdaLoraConfig(**{**SETTINGS, **settings})).train()


def optimizer_of(model):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)


def go_on(model, optimizer, steps, total=10):
    torch.manual_seed(2)
    x, goal = torch.randn(16, 6), torch.randn(16, 5)
    for step in steps:
        ((model(x) - goal) ** 2).mean().backward()
        optimizer.step()
        model.update_and_allocate(step, total)
        optimizer.zero_grad()


def kept(model):
    return {name: layer.adapters["default"].kept for name, layer in model.base_model.layers.items()}


def test_the_budget_falls_from_start_to_target():
    values = [budget(step, 40, 10, first=2, last=8) for step in range(12)]
    assert values[:3] == [40, 40, 40]
    assert values[8:] == [10, 10, 10, 10]
    assert values == sorted(values, reverse=True)
    assert values[5] == 10 + int(30 * 0.5**3)


def test_ranks_end_at_the_target_and_stay():
    model = adapted()
    optimizer = optimizer_of(model)
    go_on(model, optimizer, range(9))
    before = kept(model)
    assert sum(int(flags.sum()) for flags in before.values()) == 4
    go_on(model, optimizer, range(9, 10))
    for name, layer in model.base_model.layers.items():
        assert torch.equal(kept(model)[name], before[name])
        assert not layer.adapters["default"].lora_E[~before[name]].any()


def test_the_least_important_ranks_go():
    model = adapted(tfinal=0)
    with torch.no_grad():
        for layer in model.base_model.layers.values():
            adapter = layer.adapters["default"]
            adapter.lora_E.copy_(torch.tensor([[1.0], [1e-4], [1.0], [1e-4]]))
    go_on(model, torch.optim.SGD(model.parameters(), lr=0.0), range(11))
    assert all(flags.tolist() == [True, False, True, False] for flags in kept(model).values())


def test_the_number_of_steps_is_the_trainers_unless_stated():
    model = adapted(total_step=6)
    go_on(model, optimizer_of(model), range(6), total=1000)
    assert sum(int(flags.sum()) for flags in kept(model).values()) == 4
    with pytest.raises(StateError, match="set total_step"):
        go_on(adapted(), optimizer_of(adapted()), range(1), total=None)
    with pytest.raises(StateError, match="no step of 2"):
        go_on(adapted(), optimizer_of(adapted()), range(1), total=2)


def test_one_step_is_enough_to_judge_by():
    model = adapted(tfinal=0)
    go_on(model, optimizer_of(model), range(1, 2), total=1)  # the last allocation is the first
    assert sum(int(flags.sum()) for flags in kept(model).values()) == 4


def test_steps_that_end_before_the_last_allocation_are_refused():
    schedule = adapted(total_step=9, tfinal=2).base_model.schedules
    schedule.begin(7)
    with pytest.raises(StateError, match="total_step=9 puts the last allocation of rank after the last of 6 steps"):
        schedule.begin(6)


def test_a_schedule_without_time_is_refused():
    with pytest.raises(ValueError, match="no step of total_step=5 is left"):
        AdaLoraConfig(total_step=5, tinit=2, tfinal=3)
    with pytest.raises(ValueError, match="target_r=8 is more than init_r=4"):
        AdaLoraConfig(init_r=4)


def test_advancing_without_gradients_says_when_to():
    with pytest.raises(StateError, match="after backward and before zero_grad"):
        adapted().update_and_allocate(0, 10)


def test_files_hold_what_is_left(tmp_path):
    model = adapted()
    go_on(model, optimizer_of(model), range(10))
    model.save_pretrained(tmp_path)
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert pattern == {f"{name}.lora_E": flags.tolist() for name, flags in kept(model).items()}
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    x = torch.randn(3, 6)
    torch.testing.assert_close(loaded(x), model.eval()(x))
    assert sum(p.numel() for n, p in loaded.named_parameters() if "lora_E" in n) == 4


def test_going_on_after_an_interruption_is_going_on():
    whole = adapted()
    go_on(whole, optimizer_of(whole), range(10))

    first = adapted()
    optimizer = optimizer_of(first)
    go_on(first, optimizer, range(5))
    second = adapted()
    second.base_model.schedules.load_state_dict(first.base_model.schedules.state_dict())
    assert get_peft_model_state_dict(second).keys() == get_peft_model_state_dict(first).keys()
    set_peft_model_state_dict(second, get_peft_model_state_dict(first))
    with torch.no_grad():
        for mine, other in zip(second.parameters(), first.parameters(), strict=True):
            mine.copy_(other)
    again = optimizer_of(second)
    again.load_state_dict(optimizer.state_dict())
    go_on(second, again, range(5, 10))

    assert second.peft_config["default"].rank_pattern == whole.peft_config["default"].rank_pattern
    for mine, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_cut_tensors_fill_the_ranks_in_use():
    model = adapted()
    go_on(model, optimizer_of(model), range(10))
    state = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    x = torch.randn(3, 6)
    expected = model.eval()(x)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(7.0)
    set_peft_model_state_dict(model, state)
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(CheckpointError, match="lora_A"):
        set_peft_model_state_dict(adapted(), state)


def test_compacting_changes_no_output():
    model = adapted()
    go_on(model, optimizer_of(model), range(10))
    x = torch.randn(3, 6)
    expected, state = model.eval()(x), get_peft_model_state_dict(model)
    model.base_model.schedules.compact()
    torch.testing.assert_close(model(x), expected)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_E" in n) == 4
    assert all(torch.equal(tensor, state[name]) for name, tensor in get_peft_model_state_dict(model).items())
    assert model.get_nb_trainable_parameters()[0] == sum(tensor.numel() for tensor in state.values())


def test_each_adapter_has_its_own_schedule():
    model = adapted()
    model.add_adapter("other", AdaLoraConfig(**SETTINGS))
    go_on(model, optimizer_of(model), range(10))
    model.set_adapter("other")
    assert model.peft_config["other"].rank_pattern is None
    go_on(model, optimizer_of(model), range(4))
    assert model.peft_config["other"].rank_pattern is not None
    model.delete_adapter("other")
    model.add_adapter("other", AdaLoraConfig(**SETTINGS))
    model.set_adapter("other")
    assert model.base_model.schedules.active()["other"].state_dict() == {}


def test_keys_of_a_rank_pattern_are_layers():
    flags = [True, False]
    for key in ("0.lora_E", "0.lora_E.default", "base_model.model.0.lora_E"):
        assert AdaLoraConfig(rank_pattern={key: flags}).rank_pattern == {"0.lora_E": flags}


def test_orthogonal_rows_have_no_loss():
    q = torch.linalg.qr(torch.randn(6, 4)).Q.T
    assert off_orthogonal(q) < 1e-5
    torch.testing.assert_close(off_orthogonal(2 * q), torch.tensor(6.0))  # ||4 I - I|| of size 4
