"""What a fast path can get wrong: hooks passed by, weights captured, foreign tensors written to, factors gone stale.

Every test changes something between two forwards, and compares the second one with the onion.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from adapterkit import LoraConfig, get_peft_model
from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import wrap

ACTIVE = (["a"], ["a", "b"], ["b", "a", "c"])


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def prune_half(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)


def wrapped(active=("a",), dtype: torch.dtype = torch.float32):
    """Three adapters of different scales, frozen."""
    torch.manual_seed(0)
    model, first = One().to(dtype), True
    for name, alpha in {"a": 3, "b": 5, "c": 3}.items():
        config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["layer"], init_lora_weights=False)
        if first:
            model, first = get_peft_model(model, config, name), False
        else:
            model.add_adapter(name, config)
    model.base_model.activate(active)
    return model.requires_grad_(False).eval()


def layer_of(model):
    return model.base_model.model.layer


def check(model, x=None) -> torch.Tensor:
    """The forward's output, which is the onion's."""
    x = torch.randn(5, 12, dtype=layer_of(model).base_layer.weight.dtype) if x is None else x
    layer = layer_of(model)
    with torch.no_grad():
        y = model(x)
        expected = wrap(layer.chain(layer.selection.active), layer.base_layer, x)
    close = {} if y.dtype is torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(y, expected, **close)
    with torch.no_grad():  # a single row is taken in ways of its own
        torch.testing.assert_close(model(x[:1]), expected[:1], **close)
    return y


def factor(model, name="a", letter="lora_B"):
    return getattr(layer_of(model).adapters[name], letter).weight


@pytest.fixture(params=["plain", "listened to"])
def listened(request):
    """Whether a hook on the base layer keeps the fused form away."""
    return request.param != "plain"


@pytest.fixture(params=ACTIVE, ids="".join)
def model(request, listened):
    model = wrapped(request.param)
    if listened:
        layer_of(model).base_layer.register_forward_hook(ignore)
    check(model)
    return model


def ignore(*_) -> None:
    """A hook that does nothing, and can be pickled."""


def test_writing_to_a_factor(model):
    for letter in ("lora_A", "lora_B"):
        with torch.no_grad():
            factor(model, letter=letter).add_(1)
        check(model)


def test_loading_factors(model):
    state = {key: value + 1 for key, value in model.state_dict().items() if "lora" in key}
    for assign in (False, True):
        model.load_state_dict({k: v * 2 for k, v in state.items()}, strict=False, assign=assign)
        check(model)


def test_loading_the_base(model):
    for assign in (False, True):
        state = {key: torch.randn_like(value) for key, value in model.state_dict().items() if "base_layer" in key}
        model.load_state_dict(state, strict=False, assign=assign)
        check(model)


def test_writing_to_the_base(model):
    layer_of(model).base_layer.weight.data.mul_(2)
    check(model)
    layer_of(model).base_layer.weight = nn.Parameter(torch.randn(10, 12), requires_grad=False)
    check(model)


def test_factors_given_other_memory(model):
    for _ in range(4):
        factor(model).data = torch.randn(10, 2)  # each may get the address of the one before
        check(model)


def test_another_scale(model):
    layer_of(model).adapters["a"].scaling *= 2
    check(model)


@pytest.mark.parametrize("other", [["b"], ["c", "a"], ["a", "b"], ["b", "a"]])
def test_another_selection(model, other):
    before = model.base_model.selection.active
    model.base_model.activate(other)
    check(model)
    model.base_model.activate(before)
    check(model)


def test_an_adapter_deleted_and_made_again(model):
    model.delete_adapter("a")
    model.add_adapter("a", LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False, inference_mode=True))
    model.base_model.activate(["a"])
    check(model)


def test_merging_and_unmerging(model):
    x = torch.randn(5, 12)
    before = check(model, x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), before)
    model.unmerge_adapter()
    with torch.no_grad():
        factor(model).add_(1)
    check(model)


def test_another_type(model):
    model.to(torch.float64)
    check(model)
    model.to(torch.bfloat16)
    check(model)


def test_another_number_of_rows():
    model = wrapped(["a", "b"], torch.bfloat16)
    for rows in (1, 100, 1):
        check(model, torch.randn(rows, 12, dtype=torch.bfloat16))


def test_an_optimizer_that_writes_unseen():
    model = wrapped()
    check(model)
    model.set_requires_grad("a", True)
    for _ in range(2):
        model.train()(torch.randn(5, 12)).sum().backward()
        factor(model).data.add_(1)  # as kernels of their own write, past PyTorch's counting
        check(model.eval())
    model.set_requires_grad("a", False)
    check(model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_optimizer_that_writes_unseen_and_is_done(dropout):
    model = wrapped(["a", "b"])
    layer_of(model).adapters["a"].dropout = dropout
    check(model)
    model.set_requires_grad("a", True)
    model.train()(torch.randn(5, 12)).sum().backward()
    factor(model).data.add_(1)
    model.set_requires_grad("a", False)
    check(model.eval())


def test_factors_that_may_be_written_unseen():
    model = wrapped()
    check(model)
    model.set_requires_grad("a", True)
    factor(model).data.add_(1)
    check(model)


def test_a_factor_at_the_same_place_of_another_shape():
    model = wrapped()
    check(model)
    half = layer_of(model).adapters["a"]
    half.lora_A._parameters["weight"] = nn.Parameter(half.lora_A.weight.data[:1], requires_grad=False)
    half.lora_B._parameters["weight"] = nn.Parameter(half.lora_B.weight.data[:, :1], requires_grad=False)
    check(model)


def test_hooks_on_the_base_run_and_are_heard(model):
    base, x = layer_of(model).base_layer, torch.randn(5, 12)
    before, seen = check(model, x), []
    handles = [
        base.register_forward_pre_hook(lambda module, args: seen.append("before")),
        base.register_forward_hook(lambda module, args, y: y + 1),
    ]
    torch.testing.assert_close(model(x), before + 1)
    assert seen
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(check(model, x), before)


def test_a_forward_put_in_the_layers_place_is_called(model):
    base, x = layer_of(model).base_layer, torch.randn(5, 12)
    before = check(model, x)
    base.forward = lambda x: nn.functional.linear(x, base.weight, base.bias) + 1
    torch.testing.assert_close(model(x), before + 1)


def test_foreign_tensors_are_left_alone(model):
    x, given = torch.randn(5, 12), []
    layer_of(model).base_layer.register_forward_hook(lambda module, args, y: given.append((y, y.clone())))
    copied = x.clone()
    model(x)
    assert torch.equal(x, copied)
    assert all(torch.equal(y, then) for y, then in given)


def test_copies_and_pickles_are_of_the_model_alone(model):
    assert layer_of(model).view.kept is not None
    assert pickle.loads(pickle.dumps(layer_of(model).view)).kept is None
    other = copy.deepcopy(model)
    assert layer_of(other).view.kept is None
    with torch.no_grad():
        factor(other).add_(1)
    check(other)
    assert not torch.equal(check(other, torch.ones(1, 12)), check(model, torch.ones(1, 12)))


def test_inference_mode(model):
    x = torch.randn(5, 12)
    layer_of(model).view.kept = None
    with torch.inference_mode():
        y = model(x)
    torch.testing.assert_close(check(model, x), y)
    model(x.requires_grad_()).sum().backward()
    assert x.grad.any()


def test_one_factor_of_another_type():
    model = wrapped()
    check(model)
    half = layer_of(model).adapters["a"]
    half.lora_B._parameters["weight"] = nn.Parameter(half.lora_B.weight.data.bfloat16(), requires_grad=False)
    check(model)
    half.lora_A._parameters["weight"] = nn.Parameter(half.lora_A.weight.data.bfloat16(), requires_grad=False)
    check(model)


def test_a_factor_that_is_computed():
    model, x = wrapped(), torch.randn(5, 12)
    before = check(model, x)

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer_of(model).adapters["a"].lora_B, "weight", Doubled())
    base = layer_of(model).base_layer(x)
    torch.testing.assert_close(check(model, x) - base, 2 * (before - base))


def test_a_product_taken_away_again(model):
    half = layer_of(model).adapters["a"]
    before = check(model, x := torch.ones(2, 12))
    half.register_buffer("start_A", torch.randn(1, 12))
    half.register_buffer("start_B", torch.randn(10, 1))
    assert not torch.allclose(check(model, x), before)


def test_dropping_begins():
    model, x = wrapped(), torch.ones(4, 12)
    before = check(model, x)
    layer_of(model).adapters["a"].dropout = 0.5
    torch.testing.assert_close(check(model, x), before)
    model.train()
    with torch.no_grad():
        assert not torch.allclose(model(x), before)


def test_another_adapter_chosen_by_another_thread_meanwhile():
    model, x = wrapped(), torch.randn(5, 12)
    model.base_model.activate(["b"])
    expected = check(model, x)
    model = wrapped()

    def choose(module, args, output):
        model.base_model.activate(["b"])  # as another thread may, between the look at what is active and its use

    for hook in (layer_of(model).base_layer.register_forward_hook(choose), None):
        with torch.no_grad():
            model(x)
        if hook is not None:
            hook.remove()
    assert torch.equal(check(model, x), expected)


@pytest.mark.parametrize("compute", [prune_half, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_base_weight_that_is_computed(compute):
    base, x = One().eval(), torch.randn(5, 12)
    compute(base.layer)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)).eval()
    for _ in range(3):
        check(model, x)
    model.train()(x).sum().backward()
    assert factor(model, "default").grad.any()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(CapabilityError, match=r"weight of this .*Linear is computed"):
            merge()
    check(model.eval(), x)


def test_a_factor_that_is_computed_by_a_parametrization():
    model, x = wrapped(), torch.randn(5, 12)
    before = check(model, x)
    nn.utils.parametrizations.weight_norm(layer_of(model).adapters["a"].lora_A)
    torch.testing.assert_close(check(model, x), before)
    model.train()(x)


def test_a_scale_that_is_a_whole_number():
    model, x = wrapped(["a", "b"]), torch.randn(5, 12)
    for scaling in (2, 5):
        layer_of(model).adapters["a"].scaling = scaling
        for _ in range(2):
            check(model, x)
