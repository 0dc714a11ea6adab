"""`torch.nn.DataParallel`'s replicas, which the trainer makes where it sees several GPUs: here two on the CPU."""

from __future__ import annotations

import importlib

import pytest
import torch

from adapterkit import LoraConfig, get_peft_model
from adapterkit.registry import methods
from tests.models import batch, move, net

replicate = importlib.import_module("torch.nn.parallel.replicate")
FIELDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "embedding": {"target_modules": ["embed", "query"]},
    "dropout": {"lora_dropout": 1e-6},
    "saved": {"modules_to_save": ["classifier"]},
    "tokens": {"trainable_token_indices": {"embed": [1, 2]}},
}


@pytest.fixture
def two(monkeypatch):
    """Makes two replicas of a model, whose parameters are copies that gradients flow through."""

    def copies(tensors, devices, detach=False):
        return [[tensor * 1 if tensor.is_floating_point() else tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    return lambda model: replicate.replicate(model, [0, 1])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agrees(model, two):
    move(model)
    x = batch()
    expected, alone = model(x).detach(), gradients(model, model(x).square().sum())
    shared = gradients(model, sum(part(x).square().sum() for part in two(model)) / 2)
    assert alone.keys() == shared.keys()
    torch.testing.assert_close(shared, alone)
    with torch.no_grad():
        for part in (*two(model.eval()), *two(model)):
            torch.testing.assert_close(part(x), expected)
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_replicas_of_lora(two, fields):
    config = LoraConfig(**{"r": 2, "target_modules": ["query", "value"]} | fields)
    agrees(get_peft_model(net(), config), two)


def adapts_linear(config) -> bool:
    if "target_modules" not in config.model_fields:
        return False
    return not {"linear", "any"}.isdisjoint(config(**config.example).adapter_class().kinds)


@pytest.mark.parametrize("name", [name for name, config in methods.items() if adapts_linear(config)])
def test_replicas_of_every_method(two, name):
    config = methods[name]
    fields = {"target_modules": ["query", "value"]} | {field: [] for field in config.subset_fields}
    agrees(get_peft_model(net(), config(**dict(config.example) | fields)), two)
