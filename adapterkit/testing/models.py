"""Laws of computing: one compiled graph, gradient checkpointing, half types, the meta device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from adapterkit.build import get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from adapterkit.model import PeftModel
from adapterkit.testing.case import ROWS, AdapterCase, frozen_state, same
from adapterkit.testing.elsewhere import GPU, Elsewhere
from adapterkit.testing.toys import Toy


class ComputeLaws(AdapterCase):
    """What holds however the forward is computed."""

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, when tracing
    def test_compiles_in_one_graph(self, kind: nn.Module) -> None:
        model, x = self.adapted(kind), self.inputs(kind)
        torch._dynamo.reset()
        compiled = torch.compile(model.get_base_model(), backend="eager", fullgraph=True)
        self.close(compiled(x), model(x))

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing(self, sample: nn.Module, use_reentrant: bool) -> None:
        model, x = self.adapted(sample, "a", "b"), self.inputs(sample)
        for names in (None, list(ROWS)):
            expected = gradients(model, x, names)
            toy = model.get_base_model()
            toy.use_reentrant = use_reentrant  # type: ignore[assignment]
            self.close(gradients(model, x, names), expected)
            toy.use_reentrant = None  # type: ignore[assignment]

    @pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
    def test_half_precision(self, sample: nn.Module, autocast_adapter_dtype: bool) -> None:
        half = copy.deepcopy(sample).to(torch.bfloat16)
        model = self.adapted(half, "a", "b", autocast_adapter_dtype=autocast_adapter_dtype)
        kept = torch.float32 if autocast_adapter_dtype else torch.bfloat16
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {kept}
        exact = self.adapted(half.float(), "a", "b", moved=False)
        x = self.inputs(sample)
        for name in ("a", "b"):
            set_peft_model_state_dict(exact, get_peft_model_state_dict(model, adapter_name=name), name)
        given = x.to(torch.bfloat16) if x.is_floating_point() else x
        for names in (None, list(ROWS)):
            y = model(given, adapter_names=names)
            assert y.dtype == torch.bfloat16
            assert_near(y, exact(x, adapter_names=names))
            y.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_autocast(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample, "a", "b"), self.inputs(sample)
        for names in (None, list(ROWS)):
            expected = model(x, adapter_names=names)
            with torch.autocast("cpu", torch.bfloat16):
                y, plain = model(x, adapter_names=names), self.base(sample)(x)
            assert y.dtype in (plain.dtype, torch.float32)
            assert_near(y, expected)
            y.float().sum().backward()

    def test_changes_type_while_merged(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample), self.inputs(sample)
        frozen = {n: t.double() if t.is_floating_point() else t for n, t in frozen_state(model).items()}
        if self.merges(model):
            model.merge_adapter()
        model.double()
        y = model(x.double() if x.is_floating_point() else x)
        assert y.dtype == torch.float64
        model.unmerge_adapter()
        assert same(frozen_state(model), frozen)

    def test_made_on_the_meta_device_and_loaded(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample), self.inputs(sample)
        empty = self.adapted(sample, moved=False, low_cpu_mem_usage=True)
        assert all(p.is_meta for p in empty.parameters() if p.requires_grad)
        set_peft_model_state_dict(empty, get_peft_model_state_dict(model, adapter_name="a"), "a")
        assert not any(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
        self.close(empty(x), model(x))

    def test_on_a_gpu(self, layer: nn.Module) -> None:
        near, x = self.adapted(layer, "a", "b"), self.inputs(layer)
        with Elsewhere(), torch.no_grad():
            far, there = self.adapted(copy.deepcopy(layer).to(GPU), "a", "b"), x.to(GPU)
            assert {t.device for t in [*far.parameters(), *far.buffers()]} == {GPU}
            for names in (None, list(ROWS)):
                self.close(far(there, adapter_names=names).cpu(), near(x, adapter_names=names).cpu())
            set_peft_model_state_dict(far, get_peft_model_state_dict(near, adapter_name="b"), "a")
            assert {t.device for t in [*far.parameters(), *far.buffers()]} == {GPU}

    def test_can_be_counted_on_the_meta_device(self, layer: nn.Module) -> None:
        model = self.adapted(layer, moved=False)
        with torch.device("meta"):
            empty = get_peft_model(Toy(copy.deepcopy(layer).to("meta")), self.targeting("target", "second"), "a")
        assert empty.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()


def gradients(model: PeftModel, x: Tensor, names: list[str] | None) -> dict[str, Tensor]:
    """The gradients of a fixed function of the output."""
    model.zero_grad()
    model(x, adapter_names=names).cos().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(actual: Tensor, expected: Tensor, *, tolerance: float = 0.05) -> None:
    """Assert that two tensors differ by no more than a share of the expected one's norm."""
    error = (actual.float() - expected.float()).norm() / expected.float().norm()
    assert error <= tolerance, f"relative error {error:.3f}"
