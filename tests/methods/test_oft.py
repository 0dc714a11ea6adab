"""What is OFT's own: rotations that keep lengths, and convolutions that are what they should be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapterkit import OFTConfig, get_peft_model
from adapterkit.methods.oft import cayley
from adapterkit.methods.oft.adapter import OFTAdapter, nearest_divisor
from adapterkit.nn.view import LayerView


def adapter(layer, **settings):
    torch.manual_seed(0)
    return OFTAdapter(OFTConfig(**{"oft_block_size": 4, "init_weights": False, **settings}), LayerView(layer))


@pytest.mark.parametrize("settings", [{"use_cayley_neumann": False}, {"num_cayley_neumann_terms": 12}], ids=str)
def test_blocks_are_orthogonal(settings):
    blocks = adapter(nn.Linear(12, 6), **settings).oft_R.blocks()
    torch.testing.assert_close(blocks @ blocks.transpose(1, 2), torch.eye(4).expand(3, 4, 4), atol=1e-4, rtol=0)


def test_angles_between_rows_of_the_weight_stay():
    layer = nn.Linear(12, 6)
    changed = adapter(layer, use_cayley_neumann=False).adapt_weight(layer.weight.detach())
    assert not torch.allclose(changed, layer.weight)
    torch.testing.assert_close(changed @ changed.T, layer.weight @ layer.weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 2}, {"padding": 1, "padding_mode": "reflect"}],
)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 2)])
def test_a_convolution_rotates_every_patch(kernel, settings):
    torch.manual_seed(1)
    layer, x = nn.Conv2d(4, 6, kernel, **settings), torch.randn(2, 4, 7, 7)
    oft = adapter(layer, oft_block_size=2)
    y = oft.adapt_output(layer(x), x)
    torch.testing.assert_close(y, by_patches(layer, oft, x), atol=1e-5, rtol=1e-4)


def by_patches(layer, oft, x):
    """Each group's patches as rows, rotated one by one, times the weight: no convolution at all."""
    shape, padding = layer(x).shape, layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    options = {"dilation": layer.dilation, "padding": padding, "stride": layer.stride}
    outputs = []
    for part, weight in zip(x.chunk(layer.groups, 1), layer.weight.chunk(layer.groups, 0), strict=True):
        patches = F.unfold(part, layer.kernel_size, **options).transpose(1, 2)  # (rows, places, in / groups * kernel)
        outputs.append(oft.oft_R(patches) @ weight.flatten(1).T)
    return (torch.cat(outputs, 2).transpose(1, 2) + layer.bias[:, None]).reshape(shape)


def test_constrained_rotations_stay_in_the_ball():
    oft = adapter(nn.Linear(12, 6), coft=True, eps=0.03)
    oft.oft_R.blocks()
    assert (oft.oft_R.weight.norm(dim=1) * 2**0.5 <= 0.03 / 3**0.5 + 1e-6).all()


def test_evaluation_does_not_write_to_the_parameter():
    oft = adapter(nn.Linear(12, 6), coft=True, eps=0.03).eval()
    before = oft.oft_R.weight.clone()
    oft.oft_R.blocks()
    assert torch.equal(oft.oft_R.weight, before)


def test_dropout_leaves_its_share_of_blocks_unrotated():
    oft = adapter(nn.Linear(16, 6), module_dropout=0.5)
    still = [bool(torch.equal(block, torch.eye(4))) for block in oft.oft_R.blocks()]
    assert sum(still) == 2
    assert not any(torch.equal(block, torch.eye(4)) for block in oft.eval().oft_R.blocks())


def test_the_nearest_divisor():
    assert [nearest_divisor(12, n) for n in (1, 5, 7, 8, 9, 12, 40)] == [1, 4, 6, 6, 6, 12, 12]


def test_a_block_size_that_does_not_divide_is_said():
    with pytest.warns(UserWarning, match=r"oft_block_size=5 does not divide 12 inputs; 4 is used"):
        get_peft_model(nn.Sequential(nn.Linear(12, 3)), OFTConfig(oft_block_size=5, target_modules=["0"]))


@pytest.mark.parametrize("sizes", [{"r": 2}, {"oft_block_size": 0}])
def test_just_one_of_two_sizes(sizes):
    with pytest.raises(ValueError, match="set one of them"):
        OFTConfig(**sizes)


@pytest.mark.parametrize("size", [2, 5])
def test_the_factored_series_is_the_sum_of_its_terms(size):
    torch.manual_seed(0)
    values = torch.randn(3, size * (size - 1) // 2, dtype=torch.float64, requires_grad=True)

    def factored(values: torch.Tensor) -> torch.Tensor:
        return cayley.series(values, size, cayley.FACTORED)

    q = cayley.skew(values, size)
    torch.testing.assert_close(q, -q.transpose(1, 2))
    torch.testing.assert_close(factored(values), cayley.by_terms(q, cayley.FACTORED))
    assert torch.autograd.gradcheck(factored, values)
    assert torch.autograd.gradgradcheck(factored, values)


def test_autocast_rotates_by_rotations_in_full_precision():
    oft = adapter(nn.Linear(12, 6), num_cayley_neumann_terms=5).oft_R
    expected = oft.blocks()
    with torch.autocast("cpu", torch.bfloat16):
        blocks = oft.blocks()
    blocks.sum().backward()
    assert torch.equal(blocks, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rotations_in_half_precision_are_solved_for_in_float32(dtype):
    half = adapter(nn.Linear(12, 6), use_cayley_neumann=False).to(dtype)
    exact = adapter(nn.Linear(12, 6), use_cayley_neumann=False).oft_R.blocks()
    blocks = half.oft_R.blocks()
    assert blocks.dtype == dtype
    torch.testing.assert_close(blocks.float(), exact, atol=2e-2, rtol=0)
