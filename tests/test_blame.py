"""An error in a model's forward names the adapter that it comes from."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from adapterkit import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from adapterkit.config.layer import LayerConfig
from adapterkit.nn.adapter import LayerAdapter, PromptAdapter
from adapterkit.testing import AdapterContract
from tests.models import batch, net
from tests.parity.prompts import batch as tokens
from tests.parity.prompts import llama


class Faulty(LayerAdapter):
    """A third party's, with a mistake."""

    def __init__(self, config: Any, layer: Any) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.ones(layer.out_features))


class Raising(Faulty):
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y @ torch.zeros(3, 3)


class Wide(Faulty):
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([y, y], -1)


class Narrow(Faulty):
    def adapt_input(self, x: Tensor) -> Tensor:
        return x[..., 1:]


class Silent(Faulty):
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        y * self.scale


class Exact(Faulty):
    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        return (y * self.scale).double()


class Words(PromptAdapter):
    """A third party's prompt, which is wrong for its rows."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.embedding = nn.Embedding(3, 16)

    def tokens(self, rows: int, task_ids: Tensor | None = None) -> Tensor:
        return self.table() + torch.zeros(rows, 2, 16)


def faulty(kind: type[LayerAdapter]) -> LayerConfig:
    class FaultyConfig(LayerConfig):
        adapter: ClassVar[str] = f"tests.test_blame:{kind.__name__}"
        peft_type: Literal["FAULTY"] = "FAULTY"

    return FaultyConfig(target_modules=["query"])


def notes(model: PeftModel, *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is
        model(*args, **kwargs)
    assert model.base_model.selection.routes is None
    return getattr(caught.value, "__notes__", [])


FAULTS = {
    Raising: "raised in adapt_output of ",
    Wide: "adapt_output gives (2, 16) of torch.float32 for (2, 8) of torch.float32: ",
    Narrow: "adapt_input gives (2, 7) of torch.float32 for (2, 8) of torch.float32: ",
    Silent: "adapt_output gives no tensor, but NoneType: ",
    Exact: "adapt_output gives (2, 8) of torch.float64 for (2, 8) of torch.float32: ",
}


@pytest.mark.parametrize("adapter_names", [None, ["default", "__base__", "default", "__base__"]])
@pytest.mark.parametrize("kind", FAULTS)
def test_an_error_names_adapter_method_and_layer(kind, adapter_names):
    [note] = notes(get_peft_model(net(), faulty(kind)), batch(), adapter_names=adapter_names)
    assert note.startswith(FAULTS[kind])
    assert "FaultyConfig: adapter 'default' at 'layers.0.query', Linear(in_features=8, out_features=8" in note


def test_an_error_in_a_prompt_names_it(monkeypatch):
    monkeypatch.setattr(PromptTuningConfig, "adapter_class", lambda _: Words)
    model = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    [note] = notes(model, **tokens())
    assert note.startswith("raised in tokens of method 'prompt_tuning' (adapterkit ")
    assert note.endswith(": adapter 'default'")
    with pytest.raises(RuntimeError) as caught:
        model.generate(**tokens(), max_new_tokens=1)
    assert caught.value.__notes__ == [note]


def test_an_error_of_the_callers_blames_no_adapter():
    model = get_peft_model(net(), LoraConfig(r=2, target_modules=["query"], lora_dropout=0.5)).train()
    assert notes(model, batch() + 100) == []


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind is not Raising])
def test_the_contract_says_what_is_wrong(kind):
    contract = AdapterContract()
    contract.config = faulty(kind)
    with pytest.raises(AssertionError, match=FAULTS[kind].partition(" (")[0].partition(":")[0]):
        contract.test_gives_what_it_is_given(nn.Linear(8, 8))
