"""Small models that several test files use."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.injection.tuner import Tuner


class Block(nn.Module):
    """Two projections and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + torch.tanh(self.value(self.query(x))))


class Net(nn.Module):
    """An embedding, two blocks in a `ModuleList`, and a classifier; takes indices ``(rows, columns)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return self.classifier(h.mean(1))


def net() -> Net:
    """Always the same model, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Net().eval()


def batch(rows: int = 4) -> Tensor:
    """Always the same batch."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 10, (rows, 5), generator=generator)


def move(model: nn.Module) -> None:
    """Put every trainable parameter away from its start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def lora(**fields) -> LoraConfig:
    """LoRA of rank 2 on the projections of `Net`."""
    return LoraConfig(**{"r": 2, "target_modules": ["query", "value"], **fields})


def moved(**fields) -> PeftModel:
    """A `Net` with one adapter away from its start, in evaluation mode."""
    model = get_peft_model(net(), lora(**fields))
    move(model)
    return model.eval()


def pair() -> PeftModel:
    """Two adapters that differ; the first one is active."""
    model = get_peft_model(net(), lora(), "one")
    model.add_adapter("two", lora(r=3))
    model.set_requires_grad(["one", "two"])
    move(model)
    model.set_requires_grad("two", False)
    return model.eval()


def trainable(model: PeftModel) -> set[str]:
    """The names of the adapters that receive gradients."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {found.group(1) for name in names if (found := re.search(r"\.adapters\.(\w+)\.", name))}


def tuned(*names: str, **fields) -> Tuner:
    """A tuner over a `Net` with adapters of these names (``a`` if none is given), the first one active."""
    tuner = Tuner(net())
    for name in names or ("a",):
        tuner.add(name, lora(**fields))
    tuner.activate(names[:1] or ("a",))
    move(tuner)
    return tuner


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model's state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
