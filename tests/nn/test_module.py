"""What `adapterkit.nn.module` does for PyTorch's modules, it does as PyTorch does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit.nn.module import modules_in, set_training, tensors_in


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
    found = tensors_in(root)
    assert found.keys() == root.state_dict().keys()
    assert all(found[name].data_ptr() == tensor.data_ptr() for name, tensor in root.state_dict().items())
