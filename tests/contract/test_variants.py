"""The contract over variants of LoRA that change which tensors there are, or which of them are trained."""

from __future__ import annotations

from adapterkit import LoraConfig
from adapterkit.testing import AdapterContract
from adapterkit.testing.toys import layers_of


class TestMica(AdapterContract):
    config = LoraConfig(r=2, init_lora_weights="mica")
    layers = layers_of(frozenset({"linear", "embedding"}))


class TestBlocks(AdapterContract):
    """The first layer's second factor in blocks, the other layer's first factor."""

    config = LoraConfig(
        r=4,
        use_bdlora={
            "target_modules_bd_a": ["second"],
            "target_modules_bd_b": ["target"],
            "nblocks": 2,
            "match_strict": False,
        },
    )
    layers = layers_of(frozenset({"linear"}))


class TestDora(AdapterContract):
    config = LoraConfig(r=2, use_dora=True)


class TestPissa(AdapterContract):
    config = LoraConfig(r=2, init_lora_weights="pissa")
    layers = layers_of(frozenset({"linear"}))
