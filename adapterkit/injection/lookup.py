"""The tuner of a model, whatever is wrapped around it."""

from __future__ import annotations

from torch import nn

from adapterkit.injection.tuner import Tuner

COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names of a model that it has compiled."""


def tuner_of(model: nn.Module) -> Tuner:
    """The tuner of a wrapped model, or a new one over a plain model with injected adapters."""
    model = plain(model)
    if isinstance(model, Tuner):
        return model
    held = model._modules.get("base_model")
    if isinstance(held, Tuner):
        return held
    return Tuner(model)


def plain(model: nn.Module) -> nn.Module:
    """The model that was compiled, where ``model`` is what `torch.compile` made of it."""
    compiled = model._modules.get("_orig_mod")  # past __getattr__, which looks into what is wrapped
    return model if compiled is None else compiled
