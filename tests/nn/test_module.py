"""What `adapterkit.nn.module` does for PyTorch's modules, it does as PyTorch does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from adapterkit.nn.module import Module, empty, holders_in, modules_in, on_meta, set_training


class Stubborn(nn.Module):
    """Keeps its normalisation in evaluation mode, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.inner = nn.Sequential(nn.Dropout(0.5))

    def train(self, mode: bool = True):
        super().train(mode)
        self.norm.eval()
        return self


def modes(root: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in root.named_modules()}


def tree() -> nn.Module:
    scripted = torch.jit.script(nn.Dropout(0.5))
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "b": Stubborn(), "c": scripted})


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_the_one_that_train_sets(mode):
    ours, theirs = tree(), tree()
    for root in (ours, theirs):
        root.train(not mode)
    set_training(ours, mode)
    assert modes(ours) == modes(theirs.train(mode))


def test_modules_and_tensors_are_all_there():
    root = Stubborn()
    root.norm.register_buffer("passing", torch.ones(1), persistent=False)
    assert {id(m) for m in modules_in(root)} == {id(m) for m in root.modules()}
    found = holders_in(root)
    assert found.keys() == root.state_dict().keys()
    for name, tensor in root.state_dict().items():
        assert found[name][name.rpartition(".")[2]].data_ptr() == tensor.data_ptr()


def doubled(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return 2 * output


class Same(Module):
    """Its output is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.weight = nn.Parameter(torch.ones(2))
        self.inner = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_module_has_what_every_module_has():
    ours, theirs = Module(), nn.Module()
    assert {n: getattr(ours, n) for n in vars(theirs)} == vars(theirs)
    assert all(type(getattr(ours, n)) is type(value) for n, value in vars(theirs).items())
    assert Same().state_dict().keys() == {"weight", "seen", "inner.weight", "inner.bias"}


def test_a_plain_attribute_takes_no_parameters_place():
    module = Same()
    with pytest.raises(TypeError, match="weight"):
        module.weight = 3
    module.weight = None
    assert "weight" not in dict(module.named_parameters())


def test_hooks_are_of_one_module_alone():
    first, second, x = Same(), Same(), torch.ones(1)
    handle = first.register_forward_hook(doubled)
    assert (first(x), second(x)) == (2 * x, x)
    handle.remove()
    assert first(x) == x


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_keeps_hooks_and_attributes(duplicate):
    module, x = Same(), torch.ones(1)
    module.register_forward_hook(doubled)
    again = duplicate(module)
    assert again(x) == 2 * x
    assert (again.size, again.training, again.state_dict().keys()) == (3, True, module.state_dict().keys())


def test_empty_tensors_on_the_meta_device():
    assert not empty(2, 3).is_meta
    with on_meta():
        made = [nn.Parameter(empty(2, 3)) for _ in range(2)]
        assert torch.zeros(1).is_meta
        torch.set_default_dtype(torch.float64)
        try:
            assert empty(2, 3).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
    made[0].requires_grad_(False)
    assert [(p.is_meta, p.shape, p.dtype, p.requires_grad) for p in made] == [
        (True, (2, 3), torch.float32, False),
        (True, (2, 3), torch.float32, True),
    ]
    assert not empty(2, 3).is_meta
    assert not torch.zeros(1).is_meta
