"""What PEFT's users call on a model and on the tuner in it (`base_model`), with PEFT's numbers after each call."""

from __future__ import annotations

import copy

import pytest
import torch

import adapterkit
from tests.models import batch, net
from tests.parity.bases import llama
from tests.parity.helpers import add_noise, peft, quiet

X = batch()


def made(library):
    """Two adapters that differ, the first one active; the same tensors in either library."""
    torch.manual_seed(0)
    with quiet():
        model = library.get_peft_model(net(), library.LoraConfig(r=2, target_modules=["query", "value"]), "one")
        model.add_adapter("two", library.LoraConfig(r=3, target_modules=["query"]))
    for name in ("two", "one"):
        model.set_adapter(name)
        add_noise(model, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def both():
    ours, theirs = made(adapterkit), made(peft)
    for name in ("one", "two"):
        state = adapterkit.get_peft_model_state_dict(ours, adapter_name=name)
        with quiet():
            peft.set_peft_model_state_dict(theirs, {key: tensor.clone() for key, tensor in state.items()}, name)
    return ours, theirs


def trained(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weighted(tuner):
    tuner.add_weighted_adapter(["one", "two"], [0.5, -2.0], "sum", combination_type="cat")
    tuner.set_adapter("sum")


def delete(tuner):
    tuner.set_adapter("two")
    tuner.delete_adapter("one")


CALLS = {
    "nothing": lambda tuner: None,
    "disable": lambda tuner: tuner.disable_adapter_layers(),
    "disable and merge": lambda tuner: [tuner.disable_adapter_layers(), tuner.merge_adapter()],
    "disable and switch": lambda tuner: [tuner.disable_adapter_layers(), tuner.set_adapter("two")],
    "enable": lambda tuner: [tuner.disable_adapter_layers(), tuner.enable_adapter_layers()],
    "merge": lambda tuner: tuner.merge_adapter(),
    "merge one": lambda tuner: tuner.merge_adapter(["two"], safe_merge=True),
    "merge twice": lambda tuner: [tuner.merge_adapter(), tuner.merge_adapter()],
    "merge one, then the other": lambda tuner: [tuner.merge_adapter(["one"]), tuner.merge_adapter(["two"])],
    "merge one after the other, unmerge": lambda tuner: [
        *(tuner.merge_adapter([name]) for name in ("one", "two")),
        tuner.unmerge_adapter(),
    ],
    "unmerge": lambda tuner: [tuner.merge_adapter(), tuner.unmerge_adapter()],
    "combine": weighted,
    "delete": delete,
    "switch": lambda tuner: tuner.set_adapter("two"),
    "switch to both": lambda tuner: tuner.set_adapter(["one", "two"]),
    "switch, frozen": lambda tuner: tuner.set_adapter("two", inference_mode=True),
    "train": lambda tuner: tuner.set_requires_grad(["one", "two"], True),
}
PLACES = [(name, place) for name in CALLS for place in ("model", "tuner")]
PLACES.remove(("switch to both", "model"))  # where PEFT takes one name


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_calls_have_pefts_effect(both, name, place):
    ours, theirs = copy.deepcopy(both)
    with quiet():
        for model in (ours, theirs):
            CALLS[name](model if place == "model" else model.base_model)
        expected = theirs.base_model.model(X)  # the model around it looks for what was deleted
    torch.testing.assert_close(ours(X), expected, atol=1e-5, rtol=1e-4)
    assert ours.base_model.active_adapters == theirs.base_model.active_adapters
    if name != "delete":  # after which PEFT's is a list of one
        assert ours.base_model.active_adapter == theirs.base_model.active_adapter
    assert ours.base_model.peft_config.keys() == theirs.base_model.peft_config.keys()
    if "disable" not in name and name != "combine":  # PEFT freezes what it disables, and pads a sum with zeros
        assert trained(ours) == trained(theirs)


@pytest.mark.parametrize("place", ["model", "tuner"])
@pytest.mark.parametrize(
    "call",
    [
        lambda tuner: tuner.merge_and_unload(),
        lambda tuner: tuner.merge_and_unload(safe_merge=True, adapter_names=["two"]),
        lambda tuner: tuner.unload(),
    ],
)
def test_what_is_left_is_pefts(both, call, place):
    plain = []
    for model in copy.deepcopy(both):
        with quiet():
            plain.append(call(model if place == "model" else model.base_model))
    ours, theirs = (model.state_dict() for model in plain)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=1e-4)


def test_disabling_for_a_block_leaves_it_disabled(both):
    ours = copy.deepcopy(both[0])
    before = ours(X)
    ours.disable_adapter_layers()
    with ours.disable_adapter():
        pass
    assert torch.equal(ours(X), net()(X))
    assert trained(ours) == trained(both[0])
    ours.enable_adapter_layers()
    assert torch.equal(ours(X), before)


def test_the_tuner_refuses_to_merge_a_prompt_as_the_model_does():
    model = adapterkit.get_peft_model(llama(), adapterkit.PromptTuningConfig(num_virtual_tokens=2))
    for place in (model, model.base_model):
        with pytest.raises(adapterkit.errors.CapabilityError, match="PROMPT_TUNING cannot merge"):
            place.merge_adapter()
