"""The tuner of a model, whatever is wrapped around it."""

from __future__ import annotations

from torch import nn

from adapterkit.given import misfit
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.module import check_is_module
from adapterkit.nn.parameters import ParameterView

COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names of a model that it has compiled."""


def tuner_of(model: nn.Module) -> Tuner:
    """The tuner of a wrapped model, or a new one over a plain model with injected adapters.

    Raises:
        ArgumentError: this is no module.
    """
    model = plain(model)
    if isinstance(model, Tuner):
        return model
    held = model._modules.get("base_model")
    if isinstance(held, Tuner):
        return held
    return Tuner(model)


def pattern_name(target: str, part: nn.Module) -> str:
    """The name by which patterns find what is at layer ``target``: the layer's, or that of a parameter in it."""
    view = getattr(part, "layer", None)
    inside = view.part if isinstance(view, ParameterView) else ""
    return f"{target}.{inside}" if inside else target


def check_is_adapted(given: object) -> None:
    """
    Raises:
        ArgumentError: this is no `PeftModel`, nor one that is compiled or wrapped once more.
    """
    if not isinstance(given, nn.Module) or not hasattr(given, "peft_config"):
        raise misfit("model", given, "a PeftModel")


def plain(model: nn.Module) -> nn.Module:
    """The model that was compiled, where ``model`` is what `torch.compile` made of it.

    Raises:
        ArgumentError: this is no module.
    """
    check_is_module(model)
    compiled = model._modules.get("_orig_mod")  # past __getattr__, which looks into what is wrapped
    return model if compiled is None else compiled
