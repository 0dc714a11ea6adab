"""Optimizers that a method brings with it, as options of ``trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch.optim import AdamW, Optimizer
from transformers import Trainer, TrainingArguments

from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import ConfigError
from adapterkit.model import PeftModel
from adapterkit.registry import referenced, resolve

_MADE_BY = {
    "create_loraplus_optimizer": "adapterkit.methods.lora.optimizers",
    "create_lorafa_optimizer": "adapterkit.methods.lora.optimizers",
}
"""The functions that PEFT's programs import from here, and where they stand."""

OPTIONS = ("loraplus_lr_ratio", "lorafa")
"""Keys of ``trainer`` that choose one; `adapterkit.config.base.PeftConfig.optimizers` says who has which."""


def __getattr__(name: str) -> Any:
    if name not in _MADE_BY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve(f"{_MADE_BY[name]}:{name}")


def optimizer_for(model: PeftModel, trainer: TrainerConfig, args: TrainingArguments) -> Optimizer | None:
    """The optimizer that a method makes itself, or None where ``trainer`` asks for none of these.

    Args:
        model: the adapted model, with the trained adapter active.
        trainer: the run's ``trainer``.
        args: the same, as transformers has it: class and settings of the usual optimizer.

    Raises:
        ConfigError: the method has no such optimizer.
    """
    option = chosen(trainer)
    if option is None:
        return None
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return made(model, option, trainer, optimizer_class, settings)


def chosen(trainer: TrainerConfig) -> str | None:
    """The one of `OPTIONS` that ``trainer`` asks for."""
    return next((option for option in OPTIONS if getattr(trainer, option)), None)


def made(
    model: PeftModel,
    option: str,
    trainer: TrainerConfig,
    optimizer_class: type[Optimizer] = AdamW,
    settings: Mapping[str, Any] = MappingProxyType({"lr": 1e-3}),
) -> Optimizer:
    """The optimizer that ``option`` means; what it does not train is frozen then.

    Raises:
        ConfigError: the method has no such optimizer.
    """
    config = model.active_peft_config
    if option not in config.optimizers:
        has = f"has {', '.join(config.optimizers)}" if config.optimizers else "has none of its own"
        raise ConfigError(f"trainer.{option}: {config.peft_type} has no such optimizer; it {has}")
    make: Any = referenced(type(config), f"optimizers[{option!r}]", config.optimizers[option])
    return make(model, optimizer_class, dict(settings), trainer)  # type: ignore[no-any-return]
