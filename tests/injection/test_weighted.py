"""Weighted combinations: the identity law for every variant, exactness where it is promised, PEFT's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adapterkit
from adapterkit import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.combination import KINDS, SVD_KINDS, factorised, refactorised
from tests.parity.helpers import add_noise, peft, quiet

X = torch.randint(0, 10, (2, 6), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """An embedding, a convolution, linear layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        return self.head(self.b(torch.tanh(self.a(x))))


def net():
    torch.manual_seed(0)
    return Net().eval()


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["a"]},
    "bias": {"bias": "all"},
    "head": {"modules_to_save": ["head"]},
    "tokens": {"trainable_token_indices": [1, 4], "target_modules": ["a", "b"]},
    "patterns": {"rank_pattern": {"a": 4}, "alpha_pattern": {"b": 32}},
    "pissa": {"init_lora_weights": "pissa", "target_modules": ["a", "b"]},
    "olora": {"init_lora_weights": "olora", "target_modules": ["a", "b"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


def model(variants, **fields):
    made = None
    for name, variant in variants.items():
        config = LoraConfig(**{"r": 2, "target_modules": ["a", "b", "conv", "embed"], **VARIANTS[variant], **fields})
        if made is None:
            made = get_peft_model(net(), config, name)
        else:
            made.add_adapter(name, config)
            made.set_requires_grad(name, True)
    add_noise(made)
    return made.eval()


def change(made, name):
    """What adapter ``name`` adds to each layer's weight."""
    made.set_adapter(name)
    merged = {key: tensor.clone() for key, tensor in _merged(made).items()}
    return {key: tensor - net().state_dict()[key] for key, tensor in merged.items()}


def _merged(made):
    made.merge_adapter()
    state = {}
    for name, layer in made.base_model.layers.items():
        state |= {f"{name}.{key}": t.clone() for key, t in layer.base_layer.state_dict().items()}
    made.unmerge_adapter()
    return state


@pytest.mark.parametrize("kind", [*KINDS, *SVD_KINDS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_adapter_at_weight_one_is_that_adapter(tmp_path, variant, kind):
    made = model({"x": variant})
    expected = made(X)
    density = None if kind in ("linear", "cat", "svd") else 1.0
    made.add_weighted_adapter(["x"], [1.0], "again", kind, density=density)
    assert made.active_adapters == ["x"]
    assert made.get_model_status().requires_grad == {"x": True, "again": False}
    made.set_adapter("again")
    assert torch.equal(made(X), expected)
    state = get_peft_model_state_dict(made, adapter_name="x")
    again = get_peft_model_state_dict(made, adapter_name="again")
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    made.save_pretrained(tmp_path, selected_adapters=["again"])
    torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path / "again")(X), expected)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -2.0), (0.3, 0.0)])
@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize(
    "pair", [("plain", "rslora"), ("plain", "patterns"), ("pissa", "olora"), ("head", "plain")], ids="-".join
)
def test_cat_and_svd_of_enough_rank_are_the_weighted_sum(pair, kind, weights):
    targets = {"target_modules": ["a", "b"]} if "pissa" in pair else {}
    made = model({"x": pair[0], "y": pair[1]}, **targets)
    made.add_weighted_adapter(["x", "y"], list(weights), "sum", kind, svd_rank=8 if kind == "svd" else None)
    x, y, both = (change(made, name) for name in ("x", "y", "sum"))
    for key in both:
        expected = weights[0] * x.get(key, 0) + weights[1] * y.get(key, 0)
        torch.testing.assert_close(both[key], expected, atol=2e-5, rtol=1e-4)


def test_heads_biases_and_tokens_move_by_the_weighted_sum():
    made = model({"x": "head", "y": "head"}, bias="all", trainable_token_indices=[1, 4], target_modules=["a"])
    made.add_weighted_adapter(["x", "y"], [0.25, 0.5], "sum", "cat")
    tuner, base = made.base_model, net()
    heads = tuner.copies["head"].modules_to_save
    start = base.head.weight
    moved = 0.25 * (heads["x"].weight - start) + 0.5 * (heads["y"].weight - start)
    torch.testing.assert_close(heads["sum"].weight, start + moved)
    biases = tuner.layers["a"].biases
    moved = 0.25 * (biases["x"].bias - base.a.bias) + 0.5 * (biases["y"].bias - base.a.bias)
    torch.testing.assert_close(biases["sum"].bias, base.a.bias + moved)
    rows = tuner.layers["embed"].tokens
    start = base.embed.weight[[1, 4]]
    moved = 0.25 * (rows["x"].rows() - start) + 0.5 * (rows["y"].rows() - start)
    torch.testing.assert_close(rows["sum"].rows(), start + moved)


def model_and_pefts(fields):
    """Adapters ``x`` and ``y`` of one config, but for alpha, with the same tensors in both libraries."""
    made = get_peft_model(net(), LoraConfig(**fields), "x")
    made.add_adapter("y", LoraConfig(**fields, lora_alpha=5))
    made.set_requires_grad("y", True)
    add_noise(made)
    with quiet():
        theirs = peft.get_peft_model(net(), peft.LoraConfig(**fields), "x")
        theirs.add_adapter("y", peft.LoraConfig(**fields, lora_alpha=5))
    for name in ("x", "y"):
        state = get_peft_model_state_dict(made, adapter_name=name)
        with quiet():
            peft.set_peft_model_state_dict(theirs, {k: t.clone() for k, t in state.items()}, name)
    return made, theirs


@pytest.mark.parametrize("kind", [*KINDS, *SVD_KINDS])
def test_numbers_are_pefts(kind):
    density = None if kind in ("linear", "cat", "svd") else 0.4
    fields = {"r": 2, "target_modules": ["a", "b", "embed"]}
    made, theirs = model_and_pefts(fields)
    options = {"combination_type": kind, "density": density, "majority_sign_method": "frequency"}
    for each in (made, theirs):
        torch.manual_seed(5)
        with quiet():
            each.add_weighted_adapter(["x", "y"], [0.7, -0.4], "sum", **options)
        each.set_adapter("sum")
    if not kind.startswith("dare"):  # which numbers are dropped is drawn in another order
        torch.testing.assert_close(made(X), theirs.eval()(X), atol=1e-5, rtol=1e-4)
    sizes = {k: t.shape for k, t in get_peft_model_state_dict(made, adapter_name="sum").items()}
    assert sizes == {k: t.shape for k, t in peft.get_peft_model_state_dict(theirs, adapter_name="sum").items()}


@pytest.mark.parametrize("kind", ["svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("svd_rank", [None, 1, 3])
def test_a_pattern_does_not_cut_the_rank_of_a_sum(kind, svd_rank):
    made, theirs = model_and_pefts({"r": 6, "target_modules": ["a", "b"], "rank_pattern": {"a": 2}})
    with quiet():
        for each in (made, theirs):
            density = None if kind == "svd" else 0.5
            each.add_weighted_adapter(["x", "y"], [0.7, -0.4], "sum", kind, svd_rank=svd_rank, density=density)
            each.set_adapter("sum")
    torch.testing.assert_close(made(X), theirs.eval()(X), atol=1e-5, rtol=1e-4)
    sizes = {k: t.shape for k, t in get_peft_model_state_dict(made, adapter_name="sum").items()}
    assert sizes == {k: t.shape for k, t in peft.get_peft_model_state_dict(theirs, adapter_name="sum").items()}
    if (kind, svd_rank) == ("svd", None):
        x, y, both = (change(made, name)["a.weight"] for name in ("x", "y", "sum"))
        torch.testing.assert_close(both, 0.7 * x - 0.4 * y, atol=1e-5, rtol=1e-4)


def test_dare_drops_and_rescales():
    made = model({"x": "plain"})
    torch.manual_seed(0)
    made.add_weighted_adapter(["x"], [1.0], "dropped", "dare_linear_svd", density=0.5, svd_rank=8)
    before, after = change(made, "x")["a.weight"], change(made, "dropped")["a.weight"]
    dropped = after.abs() < 1e-5
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(after[~dropped], 2 * before[~dropped], atol=1e-4, rtol=1e-3)


def test_refactorising_is_the_svd_of_the_product():
    torch.manual_seed(0)
    b, a = torch.randn(40, 6), torch.randn(6, 30)
    for rank in (2, 4, 6):
        fast, slow = refactorised(b, a, rank), factorised(b @ a, rank)
        torch.testing.assert_close(fast[0] @ fast[1], slow[0] @ slow[1], atol=1e-4, rtol=1e-4)
        assert fast[0].shape == slow[0].shape


def test_methods_whose_parameters_add_up():
    def config(library):
        return library.IA3Config(target_modules=["a", "b"], feedforward_modules=["b"])

    made = get_peft_model(net(), config(adapterkit), "x")
    with quiet():
        theirs = peft.get_peft_model(net(), config(peft), "x")
        theirs.add_adapter("y", config(peft))
    made.add_adapter("y", config(adapterkit))
    for seed, name in enumerate(("x", "y")):
        for each in (made, theirs):
            each.set_adapter(name)
            add_noise(each, 0.2 + seed)
    for each in (made, theirs):
        each.add_weighted_adapter(["x", "y"], [0.7, -0.4], "sum")
        each.set_adapter("sum")
    torch.testing.assert_close(made.eval()(X), theirs.eval()(X))


def test_what_is_refused_changes_nothing():
    made = model({"x": "plain", "y": "patterns"})
    with pytest.raises(StateError, match="no adapter named 'z'"):
        made.add_weighted_adapter(["x", "z"], [1, 1], "sum")
    with pytest.raises(StateError, match="1 weights for the adapters"):
        made.add_weighted_adapter(["x", "y"], [1], "sum")
    with pytest.raises(StateError, match="each needs one, and stands once"):
        made.add_weighted_adapter(["x", "x"], [1, 1], "sum")
    with pytest.raises(StateError, match="an adapter named 'y' is there already"):
        made.add_weighted_adapter(["x"], [1], "y")
    with pytest.raises(CapabilityError, match=r"no combination 'tie'; did you mean 'ties'\?"):
        made.add_weighted_adapter(["x"], [2], "sum", "tie")
    with pytest.raises(CapabilityError, match="linear needs adapters of one rank, and those of a have"):
        made.add_weighted_adapter(["x", "y"], [1, 1], "sum", "linear")
    with pytest.raises(CapabilityError, match="density is the share"):
        made.add_weighted_adapter(["x"], [1], "sum", "ties", density=0)
    wrong = {"svd_rank": 0, "svd_clamp": 1.5, "majority_sign_method": "totals"}
    for option, value in wrong.items():
        with pytest.raises(CapabilityError, match=f"{option}.* {value!r}"):
            made.add_weighted_adapter(["x"], [1], "sum", "ties_svd", **{option: value})
    assert list(made.peft_config) == ["x", "y"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {"density": 0.5}),
        ("svd", {"density": 0.5}),
        ("cat", {"svd_rank": 2}),
        ("ties", {"svd_clamp": 0.9}),
        ("dare_linear", {"majority_sign_method": "frequency"}),
    ],
)
def test_a_setting_that_a_combination_does_not_read_is_told(kind, options):
    made = model({"x": "plain", "y": "plain"})
    [option] = options
    with pytest.warns(UserWarning, match=f"{option} would do nothing in a combination of type '{kind}'"):
        made.add_weighted_adapter(["x", "y"], [1, 1], "sum", kind, **options)


def test_adapters_that_are_missing_or_of_unknown_config_are_named():
    base = adapterkit.inject_adapter_in_model(LoraConfig(r=2, target_modules=["a"]), net(), "injected")
    made = get_peft_model(base, LoraConfig(r=2, target_modules=["a"]), "own")
    for names, match in (([], r"adapters=\[\]: name at least one"), (["injected", "own"], r"\['injected'\] were in")):
        with pytest.raises(StateError, match=match):
            made.add_weighted_adapter(names, [1.0] * len(names), "c")
    assert list(made.peft_config) == ["own"]
