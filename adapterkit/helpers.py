"""What PEFT's programs import from ``helpers``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from adapterkit.config.base import PeftConfig
from adapterkit.errors import AdapterkitError, CapabilityError, ConfigError
from adapterkit.given import check_number, check_path
from adapterkit.injection.lookup import check_is_adapted, tuner_of
from adapterkit.model import PeftModel

_CALLED = ("forward", "generate")


def check_if_peft_model(model_name_or_path: str | Path) -> bool:
    """Whether a directory, or a repository on the Hub, is an adapter's."""
    check_path(model_name_or_path, "model_name_or_path")
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except AdapterkitError:
        return False
    return True


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Inside the block the updates of all adapters that have a scale, LoRA's among them, are scaled by ``multiplier``.
    What is merged already stays as it is.

    Args:
        model: a `PeftModel`, or a plain model with injected adapters.
        multiplier: 0 gives the base model, 1 the adapted one.

    Raises:
        ArgumentError: ``multiplier`` is no number.
        CapabilityError: no adapter of the model has a scale.
    """
    check_number(multiplier, "multiplier")
    tuner = tuner_of(model)
    parts: list[Any] = [part for name in tuner.known for _, part in tuner.parts(name)]
    before = [(part, part.scaling) for part in parts if isinstance(getattr(part, "scaling", None), int | float)]
    if not before:
        raise CapabilityError(f"no adapter of this {type(model).__name__} has a scale")
    try:
        for part, scaling in before:
            part.scaling = scaling * multiplier
        yield
    finally:
        for part, scaling in before:
            part.scaling = scaling


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Accepted for PEFT's sake, and changes nothing: factors take the type of the inputs, not the inputs theirs."""
    yield


def update_forward_signature(model: PeftModel) -> None:
    """Let ``model.forward`` have the signature and the help of the base model's, for tools that look at them."""
    _take_signature(model, "forward")


def update_generate_signature(model: PeftModel) -> None:
    """Let ``model.generate`` have the signature and the help of the base model's."""
    _take_signature(model, "generate")


def update_signature(model: PeftModel, method: str = "all") -> None:
    """Both of the above, or one.

    Args:
        model: the adapted model.
        method: ``forward``, ``generate`` or ``all``.

    Raises:
        ConfigError: any other ``method``.
    """
    if method not in (*_CALLED, "all"):
        raise ConfigError(f"method={method!r}: choices are {', '.join(_CALLED)} and all")
    for name in _CALLED if method == "all" else (method,):
        _take_signature(model, name)


def _take_signature(model: PeftModel, name: str) -> None:
    check_is_adapted(model)
    function: Any = getattr(type(model.get_base_model()), name, None)
    if function is not None:
        own: Any = getattr(type(model), name)
        copied = FunctionType(own.__code__, own.__globals__, name, own.__defaults__, own.__closure__)
        copied.__kwdefaults__ = own.__kwdefaults__
        update_wrapper(copied, function, assigned=("__doc__", "__annotations__"), updated=())
        setattr(model, name, MethodType(copied, model))
