"""What is Poly's own: each row's task decides what it gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adapterkit import LoraConfig, PolyConfig, get_peft_model
from adapterkit.errors import CapabilityError, StateError
from adapterkit.mixed import PeftMixedModel


class Net(nn.Module):
    """Two layers, run again in backward if ``again``."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(4, 6), nn.Linear(6, 4), again

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) if self.again else self.run(x)

    def run(self, x):
        return self.second(torch.tanh(self.first(x)))


def net(again=False):
    torch.manual_seed(0)
    return Net(again)


def config(**settings):
    return PolyConfig(
        **{"r": 2, "n_tasks": 3, "init_weights": False, "target_modules": ["first", "second"], **settings}
    )


def adapted(*, again=False, **settings):
    model = get_peft_model(net(again), config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logits" in name:
                parameter.normal_(std=3)
    return model


X, IDS = torch.randn(4, 3, 4), torch.tensor([2, 0, 1, 2])


def test_every_row_gets_its_own_task():
    model = adapted()
    together = model(X, task_ids=IDS)
    for row, task in enumerate(IDS):
        torch.testing.assert_close(together[row], model(X[row : row + 1], task_ids=task[None])[0])
    assert not torch.allclose(model(X, task_ids=torch.zeros(4, dtype=torch.long)), together)


def test_rows_without_a_middle_dimension():
    model = adapted()
    torch.testing.assert_close(model(X[:, 0], task_ids=IDS), model(X, task_ids=IDS)[:, 0])


def test_the_inputs_reach_layers_that_run_again_in_backward():
    gradients = []
    for again in (False, True):
        model = adapted(again=again)
        model(X, task_ids=IDS).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


def test_training_draws_the_shares():
    model = adapted().train()
    router = model.base_model.layers["first"].adapters["default"].poly_router
    one, other = router(IDS), router(IDS)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.sum(-1), torch.ones(4, 1))
    assert torch.equal(router.eval()(IDS), router(IDS))


def test_rows_of_other_adapters_keep_their_tasks():
    model = adapted()
    model.add_adapter("other", config())
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = model(X, task_ids=IDS)
    names = ["other", "__base__", "default", "other"]
    got = model(X, adapter_names=names, task_ids=IDS)
    with model.disable_adapter():
        expected["__base__"] = model(X, task_ids=IDS)
    for row, name in enumerate(names):
        torch.testing.assert_close(got[row], expected[name][row])


def test_beside_another_method():
    model = PeftMixedModel(net(), config(), "poly").eval()
    model.add_adapter("lora", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    model.set_adapter(["poly", "lora"])
    assert model(X, task_ids=IDS).shape == X.shape
    model.set_adapter("lora")
    with pytest.raises(TypeError, match="task_ids"):  # nobody reads it, and the base model does not know it
        model(X, task_ids=IDS)


def test_what_task_ids_must_be():
    model = adapted()
    with pytest.raises(StateError, match="forward needs task_ids, one of 0 to 2"):
        model(X)
    with pytest.raises(StateError, match=r"must be from 0 to 2, and are \[0, 3\]"):
        model(X, task_ids=torch.tensor([0, 3, 0, 0]))
    with pytest.raises(StateError, match="3 entries for a layer's input of 4 rows"):
        model(X, task_ids=torch.tensor([0, 1, 2]))
    assert adapted(n_tasks=1)(X).shape == X.shape  # there is no choice


def test_no_weight_expresses_it():
    with pytest.raises(CapabilityError, match="cannot be merged"):
        adapted().merge_and_unload()


def test_splits_must_divide():
    with pytest.raises(CapabilityError, match="n_splits=5 does not divide a layer of 4 inputs and 6 outputs"):
        adapted(n_splits=5)
    with pytest.raises(CapabilityError, match="n_splits=4 does not divide a layer of 4 inputs and 6 outputs"):
        adapted(n_splits=4)
