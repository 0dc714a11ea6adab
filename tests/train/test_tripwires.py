"""Tensors that do not move fail a run, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from adapterkit.errors import CheckFailedError
from adapterkit.train.tripwires import MovementCheck, listed


class Product(nn.Module):
    """``b * a * x`` with ``b`` zero at first, as in LoRA: ``a`` has no gradient in the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.unused = nn.Parameter(torch.ones(2), requires_grad=False)
        self.frozen_by_mistake = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.b * self.a * x).sum() - 1) ** 2 + 0.0 * self.frozen_by_mistake.sum()


def train(model: Product, *, steps: int, check: MovementCheck, rates: list[float] | None = None) -> None:
    args, state, control = TrainingArguments("unused", report_to="none"), TrainerState(), TrainerControl()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step in range(steps):
        model(torch.ones(3)).backward()
        check.on_pre_optimizer_step(args, state, control)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= (rates[step] if rates else 0.01) * parameter.grad
        model.zero_grad()
        check.on_step_end(args, state, control)
    check.on_train_end(args, state, control)


def test_a_factor_behind_a_zero_passes() -> None:
    model = Product()
    train(model, steps=6, check=MovementCheck(model, steps=5))


def test_warm_up_from_zero_passes() -> None:
    model = Product()
    train(model, steps=5, check=MovementCheck(model, steps=5), rates=[0.0, 0.01, 0.02, 0.02, 0.02])


@pytest.mark.parametrize("name", ["unused", "frozen_by_mistake"])
def test_a_tensor_without_a_gradient_is_named_at_the_first_look(name: str) -> None:
    model = Product()  # `unused` gets none at all, the other one zeros
    getattr(model, name).requires_grad_(True)
    check = MovementCheck(model, steps=3)
    with pytest.raises(CheckFailedError, match=f"after 3 steps these have received no gradient but zero: {name}\\."):
        train(model, steps=9, check=check)
    assert check.taken == 3


def test_a_tensor_that_the_optimizer_forgot_is_named_at_the_end() -> None:
    model = Product()
    check = MovementCheck(model, steps=3)
    args, state, control = TrainingArguments("unused", report_to="none"), TrainerState(), TrainerControl()
    for _ in range(4):
        model(torch.ones(3)).backward()
        check.on_pre_optimizer_step(args, state, control)
        with torch.no_grad():
            model.b -= 0.01
        model.zero_grad()
        check.on_step_end(args, state, control)
    with pytest.raises(CheckFailedError, match=r"after 4 steps these have not moved: a$"):
        check.on_train_end(args, state, control)


@pytest.mark.parametrize("steps", [2, 5])
def test_rate_of_zero(steps: int) -> None:
    model = Product()
    with torch.no_grad():
        model.b.fill_(0.5)
    with pytest.raises(CheckFailedError, match="nothing has moved"):
        train(model, steps=steps, check=MovementCheck(model, steps=5), rates=[0.0] * steps)


@pytest.mark.parametrize("rates", [[0.01], [0.0, 0.01]])
def test_short_runs_need_some_movement_and_no_more_than_zero_gradients(rates: list[float]) -> None:
    model = Product()  # `b` is zero in each of these steps, and so is the gradient of `a`
    train(model, steps=len(rates), check=MovementCheck(model, steps=5), rates=rates)


def test_short_runs_name_tensors_that_the_loss_does_not_depend_on() -> None:
    model = Product()
    model.unused.requires_grad_(True)
    with pytest.raises(CheckFailedError, match=r"after 2 steps these have received no gradient: unused\."):
        train(model, steps=2, check=MovementCheck(model, steps=5))


class Experts(Product):
    """`Product` beside experts, of which some are used."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))
        self.used = used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + sum(expert(x).sum() ** 2 for expert in self.experts[: self.used])


def test_short_runs_need_one_expert_of_several() -> None:
    one, none = Experts(used=1), Experts(used=0)
    train(one, steps=2, check=MovementCheck(one, steps=5))
    with pytest.raises(CheckFailedError, match=r"no gradient: experts\.0\.bias, experts\.0\.weight, experts\.1\.bias"):
        train(none, steps=2, check=MovementCheck(none, steps=5))


def test_something_beside_modules_that_are_saved_whole_has_to_be_trained() -> None:
    model = Product().requires_grad_(False)
    with pytest.raises(CheckFailedError, match=r"nothing is trained: the adapter has no nn\.Parameter"):
        MovementCheck(model, steps=5)
    model.modules_to_save = nn.ModuleDict({"default": nn.Linear(3, 2)})
    whole = nn.ModuleDict({"head": model})
    with pytest.raises(CheckFailedError, match=r"nothing is trained but head\.modules_to_save\.default\.bias, head"):
        MovementCheck(whole, steps=5)


def test_sharded_models_are_judged_by_movement() -> None:
    model = Product()
    model.unused.requires_grad_(True)
    with pytest.raises(CheckFailedError, match="have not moved: unused"):
        train(model, steps=5, check=MovementCheck(model, steps=5, sharded=True))


def test_frozen_tensors_are_not_looked_at() -> None:
    assert MovementCheck(Product(), steps=1).parameters.keys() == {"a", "b"}


def test_long_lists_are_cut() -> None:
    assert listed(f"p{index}" for index in range(10)) == "p0, p1, p2, p3, p4, p5, p6, p7 and 2 more"
