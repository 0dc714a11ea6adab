"""`bias="all"` where the channels do not come last, against PEFT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import PeftModel
from tests.parity.helpers import add_noise, peft, quiet

LAYERS = {
    "batch_norm": lambda: nn.BatchNorm2d(8),
    "group_norm": lambda: nn.GroupNorm(2, 8),
    "instance_norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, padding=1),
    "layer_norm": lambda: nn.LayerNorm([8]),
}


class Net(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layer, self.head = nn.Conv2d(3, 8, 3, padding=1), make(), nn.Linear(8, 5)
        self.is_last = isinstance(self.layer, nn.LayerNorm)

    def forward(self, x):
        h = self.conv(x)
        h = self.layer(h.movedim(1, -1)).movedim(-1, 1) if self.is_last else self.layer(h)
        return self.head(torch.relu(h).mean((2, 3)))


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_bias_is_added_to_the_channels(tmp_path, make, side):
    x = torch.randn(2, 3, side, side)
    with quiet():
        theirs = peft.get_peft_model(Net(make), peft.LoraConfig(target_modules=["head"], bias="all", r=2))
        add_noise(theirs)
        theirs.eval().save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(Net(make), tmp_path).eval()
    torch.testing.assert_close(ours(x), theirs(x))
    ours.merge_adapter()
    torch.testing.assert_close(ours(x), theirs(x))
