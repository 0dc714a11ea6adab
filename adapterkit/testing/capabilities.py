"""Laws that hold a method to what its classes say it can do (`adapterkit.testing.claims`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapterkit.build import get_peft_model
from adapterkit.errors import CapabilityError
from adapterkit.model import PeftModel
from adapterkit.testing.case import ROWS, AdapterCase, adapted_layers
from adapterkit.testing.claims import adapts, combines, merges
from adapterkit.testing.toys import seeded


class PackedLinear(nn.Module):
    """A linear layer that stores its weight as small integers under a name of its own, as quantisers do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed: Tensor
        self.register_buffer("packed", (layer.weight.detach() * 64).round().to(torch.int8))  # (out, in)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.packed.to(x.dtype) / 64, self.bias)


class SelfAttention(nn.Module):
    """`torch.nn.MultiheadAttention` of a tensor to itself, by the name ``target``."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


class CapabilityLaws(AdapterCase):
    """What the classes say holds, and what they do not say is refused by an error that names the method."""

    def test_a_quantised_weight_is_adapted_and_merged(self) -> None:
        if not adapts(self.config.adapter_class(), "linear"):
            return
        with seeded(0):
            layer = PackedLinear(nn.Linear(8, 12))
        model, x = self.adapted(layer, "a", "b"), self.inputs(layer)
        before = layer.packed.clone()
        expected = model(x)
        assert not torch.allclose(expected, self.base(layer)(x), atol=1e-3)
        rows = model(x, adapter_names=list(ROWS))
        self.close(rows[[0, 3]], expected[[0, 3]])
        expected.sum().backward()
        assert all(torch.equal(each.base_layer.packed, before) for each in adapted_layers(model))
        if not merges(self.config.adapter_class(), "linear"):
            with pytest.raises(CapabilityError, match="cannot be merged"):
                model.merge_adapter()
            return
        model.merge_adapter()
        self.close(model(x), expected)
        model.unmerge_adapter()
        assert torch.equal(model(x), expected)

    def test_attention_of_pytorch_is_adapted_or_refused(self) -> None:
        with seeded(0):
            base, x = SelfAttention().eval(), torch.randn(5, 3, 8)
        config = self.targeting("target")
        if not adapts(self.config.adapter_class(), "attention"):
            with pytest.raises(CapabilityError, match=self.config.peft_type):
                get_peft_model(base, config, "a")
            return
        plain = base(x)
        model = get_peft_model(base, config, "a").eval()
        self.move(model)
        expected = model(x)
        assert not torch.allclose(expected, plain, atol=1e-3)
        model.merge_adapter()
        self.close(model(x), expected)
        model.unmerge_adapter()
        assert torch.equal(model(x), expected)

    def test_adapters_are_combined_or_refused(self, kind: nn.Module) -> None:
        model, x = self.adapted(kind, "a", "b"), self.inputs(kind)
        if not combines(self.config.adapter_class()):
            with pytest.raises(CapabilityError, match=self.config.peft_type):
                model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", combination_type="linear")
            assert set(model.peft_config) == {"a", "b"}
            return
        model.add_weighted_adapter(["a"], [1.0], "c", combination_type="linear")
        self.close(self.active(model, "c", x), self.active(model, "a", x))

    def active(self, model: PeftModel, name: str, x: Tensor) -> Tensor:
        model.set_adapter(name)
        return model(x)  # type: ignore[no-any-return]
