"""Every documented method against PEFT on the same weights: the largest absolute difference of each quantity."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adapterkit
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.config.prompt import PromptConfig
from adapterkit.registry import methods
from adapterkit.testing.claims import merges
from tests.parity.helpers import gradients, peft, peft_model, quiet, run, state_of
from tests.parity.layers import Single, seeded, single
from tests.parity.prompts import batch, bert, gpt2, llama, t5

KINDS = {"linear": "linear", "transposed": "linear", "embedding": "embedding", "conv1d": "conv", "conv2d": "conv"}
KINDS |= {"conv3d": "conv", "pointwise": "conv"}
"""Layers that methods are compared on, and their kinds."""

FIELDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 6},
    "adalora": {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6},
    "loha": {"r": 4, "alpha": 6},
    "lokr": {"r": 4, "alpha": 6},
    "oft": {"oft_block_size": 4},
    "hra": {"r": 4},
    "poly": {"r": 2, "n_tasks": 3},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 1},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 5},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "multitask_prompt_tuning": {"num_virtual_tokens": 3, "num_tasks": 2},
}
PEFT_LAYERS: dict[str, tuple[str, ...]] = {  # what PEFT itself computes, of our kinds
    "lora": ("linear", "transposed", "embedding", "conv1d", "conv2d", "conv3d"),
    "adalora": ("linear", "transposed"),
    "ia3": ("linear", "transposed", "conv2d", "conv3d"),
    "loha": ("linear", "conv1d", "conv2d"),
    "lokr": ("linear", "conv1d", "conv2d"),
    "oft": ("linear", "embedding", "pointwise"),
    "hra": ("linear", "conv2d"),
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "Llama, DoRA": {"use_dora": True},
        "Llama, MiCA": {"init_lora_weights": "mica"},
        "Llama, BD-LoRA": {
            "use_bdlora": {
                "target_modules_bd_a": ["down_proj"],
                "target_modules_bd_b": ["q_proj", "v_proj"],
                "nblocks": 2,
            }
        },
    }
}
"""What is compared beside a method's usual form."""

QUANTITIES = ("forward", "gradient", "merged weight", "PEFT reads ours", "we read PEFT's")


@dataclass(frozen=True)
class Case:
    """A method on a base model."""

    method: str
    base: str
    make: Callable[[], nn.Module]
    inputs: Any
    fields: Mapping[str, Any]
    task_type: str | None = None

    def __str__(self) -> str:
        return f"{self.method}-{self.base}"

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.fields, **({"task_type": self.task_type} if self.task_type else {})}

    @property
    def is_prompt(self) -> bool:
        return issubclass(methods[self.method], PromptConfig)


@dataclass
class Differences:
    """Largest absolute differences by quantity; None where there is no such quantity. ``scale`` is the largest number
    that was compared, at least 1."""

    found: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(QUANTITIES))
    scale: float = 1.0

    def note(self, quantity: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        assert ours.keys() == theirs.keys(), (quantity, sorted(ours.keys() ^ theirs.keys()))
        assert theirs, quantity
        for key, tensor in theirs.items():
            assert ours[key].shape == tensor.shape, (quantity, key)
            difference = float((ours[key].double() - tensor.double()).abs().max())
            self.found[quantity] = max(self.found[quantity] or 0.0, difference)
            self.scale = max(self.scale, float(tensor.abs().max()))


def documented() -> list[str]:
    """The installed methods that PEFT has, too."""
    known = {str(kind.value).lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    return [name for name in methods if name in known]


def cases() -> Iterator[Case]:
    for method in documented():
        yield from _on_layers(method)
        yield from _on_models(method)


def _on_layers(method: str) -> Iterator[Case]:
    extra = {"feedforward_modules": []} if method == "ia3" else {}
    for name in PEFT_LAYERS.get(method, ()):
        if name == "pointwise":
            torch.manual_seed(3)
            make, inputs = seeded(lambda: Single(nn.Conv2d(8, 6, 1, stride=2, padding=1))), torch.randn(2, 8, 5, 5)
        else:
            make, inputs = single(name)
        fields = {**FIELDS.get(method, {}), **extra, "target_modules": ["target"]}
        if (method, name) == ("oft", "embedding"):
            fields["oft_block_size"] = 3
        yield Case(method, name, make, inputs, fields)


def _on_models(method: str) -> Iterator[Case]:
    fields, ids = FIELDS.get(method, {}), {**batch(), "labels": batch()["input_ids"]}
    rows = torch.tensor([1, 0, 1])
    if method == "poly":
        yield Case(method, "T5", t5, {**ids, "task_ids": rows}, fields, "SEQ_2_SEQ_LM")
    elif method == "adaption_prompt":
        yield from (
            Case(method, name, make, ids, fields, "CAUSAL_LM") for name, make in (("Llama", llama), ("GPT-2", gpt2))
        )
    elif issubclass(methods[method], PromptConfig):
        given = {**ids, "task_ids": rows} if method.startswith("multitask") else ids
        yield Case(method, "Llama", llama, given, fields, "CAUSAL_LM")
        if method != "multitask_prompt_tuning":
            classes = {**batch(), "labels": torch.tensor([0, 1, 1])}
            yield Case(method, "BERT", lambda: bert("AutoModelForSequenceClassification"), classes, fields, "SEQ_CLS")
        yield Case(method, "T5", t5, given, fields, "SEQ_2_SEQ_LM")
    else:
        own = {"feedforward_modules": ["down_proj"]} if method == "ia3" else {}
        targets = ["q_proj", "v_proj", "down_proj"]
        if method == "adalora":  # with labels PEFT adds its regularisation, which a model it has loaded cannot compute
            ids = batch()
        for name, more in {"Llama": {}, **VARIANTS.get(method, {})}.items():
            yield Case(method, name, llama, ids, {**fields, **own, **more, "target_modules": targets}, "CAUSAL_LM")


def measure(case: Case) -> Differences:
    """Both libraries on one set of weights that went through PEFT's file, and through ours and back."""
    found = Differences()
    with tempfile.TemporaryDirectory() as folder, quiet():
        directory = Path(folder)
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(case.method.upper())](**case.settings)
        theirs = peft_model(config, case.make())
        theirs.save_pretrained(directory / "theirs")
        state = {key: tensor.detach() for key, tensor in state_of(theirs).items()}
        ours = adapterkit.PeftModel.from_pretrained(case.make(), directory / "theirs", is_trainable=True).eval()
        found.note("we read PEFT's", get_peft_model_state_dict(ours), state)
        found.note("forward", *_outputs(ours, theirs, case.inputs))
        ours.save_pretrained(directory / "ours")
        back = peft.PeftModel.from_pretrained(case.make(), directory / "ours").eval()
        found.note("PEFT reads ours", get_peft_model_state_dict(ours), state_of(back))
        found.note("forward", *_outputs(ours, back, case.inputs))
        found.note("gradient", *(_prompt_gradients if case.is_prompt else _gradients)(case, ours, theirs))
        if _can_merge(case):
            found.note("merged weight", *(dict(each.merge_and_unload().state_dict()) for each in (ours, theirs)))
    return found


def _can_merge(case: Case) -> bool:
    if case.is_prompt:
        return False
    kind = KINDS.get(case.base, "linear")
    return merges(methods[case.method](**case.settings).adapter_class(), kind)


def _outputs(ours: Any, theirs: Any, inputs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss and output, without the columns of virtual tokens that PEFT leaves in outputs by column."""
    with torch.no_grad():
        results = [model(**inputs) if isinstance(inputs, dict) else run(model, inputs) for model in (ours, theirs)]
    if isinstance(results[0], Tensor):
        return {"output": results[0]}, {"output": results[1]}
    mine, other = ({k: r[k] for k in ("loss", "logits") if r.get(k) is not None} for r in results)
    if mine["logits"].ndim > 2:
        other["logits"] = other["logits"][:, -mine["logits"].shape[1] :]
    return mine, other


def _gradients(case: Case, ours: Any, theirs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    states = get_peft_model_state_dict(ours), state_of(theirs)
    mine, other = (gradients(model, state, case.inputs) for model, state in zip((ours, theirs), states, strict=True))
    return mine, other


def _prompt_gradients(case: Case, ours: Any, theirs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the loss, with respect to the prompt's own parameters, networks included: files have only what these make."""
    del ours
    fresh = adapterkit.get_peft_model(case.make(), methods[case.method](**case.settings)).eval()
    own = dict(fresh.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                own[_our_name(name, own)].copy_(parameter)
    found = []
    for model in (fresh, theirs):
        model.zero_grad()
        model(**case.inputs).loss.backward()
        found.append({_our_name(n, own): p.grad for n, p in model.named_parameters() if p.grad is not None})
    return found[0], found[1]


def _our_name(name: str, own: Mapping[str, Any]) -> str:
    """PEFT has no ``model`` under ``base_model`` where the method is a prompt."""
    return name if name in own else name.replace("base_model.", "base_model.model.", 1)


def table() -> str:
    """One line a method and base."""
    lines = [f"| method | on | {' | '.join(QUANTITIES)} | largest number |", "|---" * (3 + len(QUANTITIES)) + "|"]
    for case in cases():
        measured = measure(case)
        cells = [_cell(measured.found[each]) for each in QUANTITIES]
        lines.append(f"| {case.method} | {case.base} | {' | '.join(cells)} | {measured.scale:.0f} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"
