"""Folding adapters into the base of a whole model, and taking them out again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig
from adapterkit.errors import StateError
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from tests.models import batch, lora, move, net, tuned, values


@pytest.mark.parametrize(
    ("mode", "biases"),
    [
        ("none", []),
        ("lora_only", ["layers.0.query", "layers.1.query"]),
        ("all", [f"layers.{i}.{n}" for i in (0, 1) for n in ("query", "norm")] + ["classifier"]),
    ],
)
def test_bias_modes(mode, biases):
    tuner = tuned("a", bias=mode)
    assert [name for name, layer in tuner.layers.items() if "a" in layer.biases] == sorted(
        biases, key=list(tuner.layers).index
    )
    x, model = batch(), tuner.model
    changed, base = model(x), net()(x)
    tuner.merge()
    torch.testing.assert_close(model(x), changed, atol=1e-5, rtol=1e-4)
    tuner.unmerge()
    tuner.delete("a")
    assert torch.equal(model(x), base)


def test_deleting_or_switching_while_merged_is_refused():
    tuner = tuned("a", "b")
    tuner.merge(("a",))
    for call in (lambda: tuner.delete("a"), lambda: tuner.activate(("b",))):
        with pytest.raises(StateError, match="merged"):
            call()
    tuner.unmerge()
    tuner.delete("a")


def test_merging_on_is_merging_all_at_once():
    tuner, together = tuned("a", "b"), tuned("a", "b")
    before = values(tuner.model)
    tuner.merge(("b",))
    once = values(tuner.model)
    tuner.merge(("b",))
    assert all(torch.equal(once[key], tensor) for key, tensor in values(tuner.model).items())
    tuner.merge(("a",))
    together.merge(("b", "a"))
    assert tuner.merged_adapters == ("b", "a")
    assert tuner.merge_errors == together.merge_errors
    after = values(together.model)
    assert all(torch.equal(after[key], tensor) for key, tensor in values(tuner.model).items())
    assert not torch.equal(after["layers.0.query.base_layer.weight"], once["layers.0.query.base_layer.weight"])
    tuner.unmerge()
    assert all(torch.equal(before[key], tensor) for key, tensor in values(tuner.model).items())


def test_merging_on_that_fails_leaves_what_was_merged():
    tuner = tuned("a", "b")
    with torch.no_grad():
        tuner.layers["layers.1.value"].adapters["b"].lora_B.weight.fill_(torch.nan)
    tuner.merge(("a",))
    before = values(tuner.model)
    with pytest.raises(StateError, match="not finite"):
        tuner.merge(("b",), safe=True)
    assert tuner.merged_adapters == ("a",)
    assert all(torch.equal(before[key], t) or t.isnan().any() for key, t in values(tuner.model).items())


def test_adapters_stay_merged_in_their_order():
    tuner = Tuner(net())
    tuner.add("first", lora(target_modules=["query"]))
    tuner.add("a", lora(target_modules=["value"]))
    tuner.add("b", lora())
    tuner.merge(("a", "b"))  # the first layer has b alone
    assert tuner.merged_adapters == ("a", "b")
    tuner.activate(("a", "b"))
    tuner.merge(("first",))
    assert tuner.layers["layers.0.value"].merged_adapters == ("a", "b")
    assert tuner.merged_adapters == ("a", "b", "first")
    tuner.unmerge()
    assert tuner.merged_adapters == ()


def test_weights_that_nobody_kept_are_not_merged_into_again():
    tuner = tuned("a", "b")
    tuner.merge(("a",), keep=False)
    with pytest.raises(StateError, match=r"adapters \['a'\] are merged for good"):
        tuner.merge(("b",))


def test_merging_is_all_layers_or_none():
    tuner = tuned("a")
    before = values(tuner.model)
    with torch.no_grad():
        tuner.layers["layers.1.value"].adapters["a"].lora_B.weight.fill_(torch.nan)
    expected = values(tuner.model)
    with pytest.raises(StateError, match="not finite"):
        tuner.merge(safe=True)
    after = values(tuner.model)
    assert all(torch.equal(after[k], t) or t.isnan().any() for k, t in expected.items())
    assert not tuner.merged_adapters
    assert after.keys() == before.keys()


def test_merging_several_equals_their_sum():
    tuner, x = tuned("a", "b"), batch()
    tuner.activate(("a", "b"))
    expected = tuner(x)
    tuner.merge()
    assert tuner.merged_adapters == ("a", "b")
    torch.testing.assert_close(tuner(x), expected, atol=1e-5, rtol=1e-4)
    tuner.unmerge()
    assert torch.equal(tuner(x), expected)


@pytest.mark.parametrize("merged_before", [False, True])
def test_unloading_with_and_without_the_change(merged_before):
    for merge in (False, True):
        tuner, x = tuned("a", modules_to_save=["classifier"]), batch()
        expected = tuner(x) if merge else net()(x)
        if merged_before:
            tuner.merge()
        plain = tuner.unload(merge=merge)
        assert not [m for m in plain.modules() if isinstance(m, AdaptedLayer | CopiedLayer)]
        torch.testing.assert_close(plain(x), expected, atol=1e-5, rtol=1e-4)
        tuner.add("again", lora())
        tuner.activate(("again",))
        torch.testing.assert_close(tuner(x), expected, atol=1e-5, rtol=1e-4)


def test_unloading_folds_in_beside_what_is_merged():
    tuner, x = tuned("a", "b"), batch()
    tuner.activate(("b", "a"))
    expected = tuner(x)
    tuner.activate(("a",))
    tuner.merge(("b",))
    torch.testing.assert_close(tuner.unload(merge=True)(x), expected, atol=1e-5, rtol=1e-4)


def test_what_was_merged_is_merged_again_where_unloading_fails():
    tuner, x = tuned("a", "b"), batch()
    tuner.merge(("a",))
    expected, before = tuner(x), values(tuner.model)
    layer = tuner.layers["layers.1.value"]
    with torch.no_grad():
        layer.adapters["b"].lora_B.weight.fill_(torch.nan)
    for names, match in ((["b"], "nothing was changed"), (["c"], "no adapter named 'c'")):
        with pytest.raises(StateError, match=match):
            tuner.unload(merge=True, names=names, safe=True)
        assert tuner.merged_adapters == ("a",)
        assert torch.equal(tuner(x), expected)
    after = values(tuner.model)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items() if "adapters.b" not in key)


def test_merged_adapters_are_listed_in_their_order():
    tuner = Tuner(net())
    tuner.add("b", lora(target_modules=["query", "value"]))
    tuner.add("a", lora(target_modules=["value"]))
    tuner.activate(("a", "b"))
    tuner.merge()
    assert tuner.merged_adapters == ("a", "b")
    tuner.activate(("a", "b"))


def test_merging_keeps_a_tied_weight_elsewhere():
    model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})
    model["two"].weight = model["one"].weight
    before = model["two"].weight.clone()
    tuner = Tuner(model)
    tuner.add("a", LoraConfig(r=2, target_modules=["one"]))
    move(tuner)
    tuner.merge(("a",))
    assert torch.equal(model["two"].weight, before)
    assert not torch.equal(model["one"].weight, before)


@pytest.mark.parametrize("targets", [["one"], ["one", "two"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tied_weight_is_one_after_a_conversion_while_merged(targets, dtype):
    model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})
    model["two"].weight = weight = model["one"].weight
    before = weight.to(dtype, copy=True)
    tuner = Tuner(model)
    tuner.add("a", LoraConfig(r=2, target_modules=targets))
    move(tuner)
    tuner.merge(("a",))
    tuner.to(dtype)
    tuner.unmerge()
    assert model["one"].weight is model["two"].weight is weight
    assert torch.equal(weight, before)


READERS = {
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "loftq": {"init_lora_weights": "loftq"},
    "bias": {"bias": "all"},
    "tokens": {"trainable_token_indices": {"embed": [1, 4]}},
    "parameters": {"target_modules": [], "target_parameters": ["classifier.weight"], "init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("reader", READERS)
def test_what_an_adapter_reads_at_its_start_is_the_frozen_weight(reader):
    made = []
    for merge in (False, True):
        tuner = tuned("a", target_modules=["query", "value", "embed"], bias="lora_only")
        tuner.add("p", lora(target_modules=[], target_parameters=["classifier.weight"]))
        move(tuner)
        if merge:
            tuner.merge(("a", "p"))
        tuner.add("b", lora(**READERS[reader]))
        parts = [(target, part.state_dict(keep_vars=True)) for target, part in tuner.parts("b")]
        buffers = [dict(part.named_buffers()) for _, part in tuner.parts("b")]
        made.append([(t, {**own, **more}) for (t, own), more in zip(parts, buffers, strict=True)])
    for (target, before), (same, merged) in zip(*made, strict=True):
        assert (target, before.keys()) == (same, merged.keys())
        assert all(torch.equal(before[key], merged[key]) for key in before), target


def test_what_is_tied_is_seen_while_merged():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

    tuner = Tuner(Tied())
    tuner.add("a", LoraConfig(r=2, target_modules=["embed"]))
    move(tuner)
    tuner.merge(("a",))
    tuner.add("b", LoraConfig(r=2, target_modules=["embed"], trainable_token_indices=[1, 2]))
    assert list(dict(tuner.parts("b"))) == ["embed", "head"]
