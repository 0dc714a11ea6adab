"""Memory for copies of large weights behaves as any tensor's."""

from __future__ import annotations

import copy
import io
import mmap

import pytest
import torch

from adapterkit.nn import memory

LARGE = (1100, 1000)


def test_it_has_the_shape_and_type_and_memory_of_its_own() -> None:
    weight = torch.randn(LARGE).to(torch.bfloat16)
    first, second = memory.empty_like(weight).fill_(1), memory.empty_like(weight).fill_(2)
    assert (first.shape, first.dtype, first.stride()) == (weight.shape, weight.dtype, weight.stride())
    assert bool((first == 1).all())
    assert bool((second == 2).all())
    assert first.untyped_storage().nbytes() == weight.nbytes


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux has large pages")
def test_large_tensors_begin_a_large_page() -> None:
    assert memory.empty_like(torch.empty(LARGE)).data_ptr() % (1 << 21) == 0


@pytest.mark.parametrize("made", ["copied", "saved", "shared", "moved"])
def test_it_is_copied_saved_and_shared(made: str) -> None:
    tensor = memory.empty_like(torch.empty(LARGE)).copy_(torch.randn(LARGE))
    expected = tensor.clone()
    if made == "copied":
        tensor = copy.deepcopy(tensor)
    elif made == "saved":
        file = io.BytesIO()
        torch.save(tensor, file)
        assert file.tell() < 1.1 * tensor.nbytes
        file.seek(0)
        tensor = torch.load(file)
    elif made == "shared":
        tensor.share_memory_()
    else:
        tensor = tensor.double().float()
    assert torch.equal(tensor, expected)


def test_where_large_pages_are_refused_it_is_usual_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)
    tensor = memory.empty_like(torch.empty(LARGE))
    assert tensor.untyped_storage().resizable()


@pytest.mark.parametrize("tensor", [torch.empty(3, 4), torch.empty(LARGE).T, torch.empty(LARGE, device="meta")])
def test_small_and_transposed_tensors_and_those_elsewhere_get_usual_memory(tensor: torch.Tensor) -> None:
    made = memory.empty_like(tensor)
    assert made.stride() == tensor.stride()
    assert made.device == tensor.device
    assert made.untyped_storage().resizable()
