"""LoRA of a mixture's stacked parameters, from that of the layers that its experts once were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def stacked(layers: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The factors that change ``(experts, outputs of all layers, inputs)`` as each layer's change its own part.

    The ranks of the layers are put one behind the other, and B has a block for each.

    Args:
        layers: ``layers[layer][expert]`` is A ``(r, in)`` and B ``(out, r)``, by key.

    Returns:
        A ``(experts * ranks, in)`` and B ``(outs, ranks * experts)``, by key.
    """
    inner = torch.cat([torch.stack([expert["lora_A.weight"] for expert in layer]) for layer in layers], 1)
    blocks = [[part["lora_B.weight"] for part in parts] for parts in zip(*layers, strict=True)]  # by expert
    outer = torch.stack([torch.block_diag(*parts) for parts in blocks], 2)  # type: ignore[no-untyped-call]
    return {"lora_A.weight": inner.flatten(0, 1), "lora_B.weight": outer.flatten(1)}
