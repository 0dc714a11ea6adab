"""Where PEFT 0.21.2 and we give different numbers: which of the two is the derivative, or the merge, of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adapterkit
from adapterkit.checkpoint.state import get_peft_model_state_dict
from tests.parity.helpers import peft, peft_model, quiet, run, state_of
from tests.parity.layers import Single, seeded


class Attention(nn.Module):
    """`torch.nn.MultiheadAttention` of a tensor to itself, by the name ``target``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.target = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x, x, x, need_weights=False)[0]


def both(config: Any, make: Callable[[], nn.Module], randomize: Callable[[nn.Module], None] | None = None) -> Any:
    """Our model and PEFT's, with the weights of one file."""
    with tempfile.TemporaryDirectory() as directory, quiet():
        theirs = peft_model(config, make(), **({} if randomize is None else {"randomize": randomize}))
        theirs.save_pretrained(Path(directory))
        ours = adapterkit.PeftModel.from_pretrained(make(), directory, is_trainable=True).eval()
    return ours, theirs


def from_own_merge(model: Any, x: Tensor) -> float:
    """How far a model is from what it merges to, at most."""
    with quiet(), torch.no_grad():
        before = run(model, x)
        return float((before - run(model.merge_and_unload().eval(), x)).abs().max())


def from_own_derivative(model: Any, state: dict[str, Tensor], x: Tensor) -> float:
    """How far the gradient of the output's sum of squares is from a central difference, at most, in float64."""
    parameters = {t.data_ptr(): t for t in state.values()}
    worst, step = 0.0, 1e-5
    model.zero_grad()
    run(model, x).pow(2).sum().backward()
    for parameter in [p for p in model.parameters() if p.data_ptr() in parameters]:
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in range(0, len(flat), max(1, len(flat) // 5)):
            values = []
            for sign in (1, -1):
                flat[index] += sign * step
                with torch.no_grad():
                    values.append(run(model, x).pow(2).sum())
                flat[index] -= sign * step
            worst = max(worst, abs(float((values[0] - values[1]) / (2 * step) - gradient[index])))
    return worst


def attention() -> tuple[float, float]:
    """How far the output projection of the merged model is from ``W + s B A``, at most."""
    config = peft.LoraConfig(r=4, target_modules=["target"])
    make, found = seeded(lambda: Attention(8, 2)), []
    weight = make().target.out_proj.weight.detach()
    for model, state in zip(both(config, make), (get_peft_model_state_dict, state_of), strict=True):
        a, b = (next(t for k, t in state(model).items() if f"out_proj.lora_{each}" in k).detach() for each in "AB")
        with quiet():
            merged = model.merge_and_unload().target.out_proj.weight
        found.append(float((merged - (weight + config.lora_alpha / config.r * b @ a)).abs().max()))
    return found[0], found[1]


def rotated_convolution() -> tuple[float, float]:
    torch.manual_seed(3)
    config = peft.OFTConfig(oft_block_size=4, target_modules=["target"])
    models = both(config, seeded(lambda: Single(nn.Conv2d(4, 6, 3, stride=2, padding=1))))
    x = torch.randn(2, 4, 7, 7)
    return tuple(from_own_merge(model, x) for model in models)  # type: ignore[return-value]


def effective_convolution() -> tuple[float, float]:
    torch.manual_seed(3)
    config = peft.LoHaConfig(r=4, use_effective_conv2d=True, target_modules=["target"])
    models = both(config, seeded(lambda: Single(nn.Conv2d(4, 6, 3, stride=2, padding=1))))
    x, found = torch.randn(2, 4, 7, 7).double(), []
    for model, state in zip(models, (get_peft_model_state_dict, state_of), strict=True):
        found.append(from_own_derivative(model.double(), state(model), x))
    return found[0], found[1]


def scalar_attention() -> tuple[float, float]:
    """Attention of one number to itself: every weight is 1 and every bias 0, and the update of the output projection
    is 1 as well. One column is attended to whole, so that ``y = W_o W_v x`` with ``W_o = 1 + 1``."""

    def one(model: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_zero = "bias" in name or ("lora_B" in name and "out_proj" not in name)
                parameter.fill_(0.0 if is_zero else 1.0)

    def make() -> nn.Module:
        model = Attention(1, 1).eval()
        one(model)
        return model

    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["target"])
    outputs = [float(run(model, torch.ones(1, 1, 1)).detach()) for model in both(config, make, one)]
    return outputs[0], outputs[1]


CASES: dict[str, tuple[str, Callable[[], tuple[float, float]]]] = {
    "LoRA on `nn.MultiheadAttention`": ("merged `out_proj`, from `W + s B A`", attention),
    "OFT on a `Conv2d`": ("forward, from the model it merges to", rotated_convolution),
    "LoHa, `use_effective_conv2d`, on a `Conv2d`": (
        "gradient, from a central difference",
        effective_convolution,
    ),
}


def table() -> str:
    lines = ["| case | distance | ours | PEFT |", "|---|---|---|---|"]
    for name, (what, measure) in CASES.items():
        ours, theirs = measure()
        lines.append(f"| {name} | {what} | {ours:.0e} | {theirs:.0e} |")
    ours, theirs = scalar_attention()
    lines.append(
        f"| LoRA on attention of one number, all weights 1 | its output, where 2 is right | {ours:g} | {theirs:g} |"
    )
    return "\n".join(lines)
