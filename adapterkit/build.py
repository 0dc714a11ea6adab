"""From a base model and a config to an adapted model: the factory functions of the public surface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adapterkit.architectures import model_path
from adapterkit.checkpoint.keys import targets_in
from adapterkit.config.base import PeftConfig, check_is_config
from adapterkit.errors import CapabilityError
from adapterkit.given import check_mapping, check_name
from adapterkit.injection.tuner import Tuner
from adapterkit.mixed import PeftMixedModel
from adapterkit.model import PeftModel, wrapper_for
from adapterkit.nn.module import check_is_module


def get_peft_config(config_dict: Mapping[str, Any]) -> PeftConfig:
    """The config that a dict describes; its ``peft_type`` chooses the class.

    Keys that other releases wrote and that have no value are ignored.

    Raises:
        ConfigError: an unknown method or key, or a value that is not valid.
    """
    return PeftConfig.from_dict(config_dict)


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Give a base model an adapter.

    Args:
        model: the base model, changed in place.
        peft_config: which method and how.
        adapter_name: what to call the adapter.
        mixed: adapters of several methods are going to be mixed.
        autocast_adapter_dtype: keep the adapter in float32 where the base is in a half type.
        revision: revision of the base model, written into the adapter's config.
        low_cpu_mem_usage: make the adapter on the meta device, to be filled by loading.

    Raises:
        TargetError: a stated module name matches nothing.
        CapabilityError: the method cannot adapt a target.
    """
    check_is_module(model)
    check_is_config(peft_config)
    if revision is not None:
        check_name(revision, "revision")
    changes: dict[str, Any] = {"revision": revision} if revision else {}
    name = model_path(model)
    if name and not peft_config.base_model_name_or_path:
        changes["base_model_name_or_path"] = name
    config = peft_config.model_copy(update=changes)
    wrapper = PeftMixedModel if mixed else wrapper_for(config)
    return wrapper(model, config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put an adapter into a model in place, without a wrapper.

    Args:
        peft_config: a layer method's config.
        model: any module.
        adapter_name: what to call the adapter.
        low_cpu_mem_usage: make it on the meta device, to be filled by `set_peft_model_state_dict`.
        state_dict: a saved adapter's tensors, whose keys say which modules are adapted, whatever the config does. Their
            values are for `set_peft_model_state_dict`.

    Returns:
        the same model.

    Raises:
        CapabilityError: the method needs a wrapper around the model.
        CheckpointError: no key of ``state_dict`` is of a module of this model.
    """
    check_is_config(peft_config)
    check_is_module(model)
    if peft_config.is_prompt_learning:
        raise CapabilityError(f"{peft_config.peft_type} adapts a whole model's inputs: use get_peft_model")
    if state_dict is not None:
        check_mapping(state_dict, "state_dict", "a mapping of tensors by key")
        narrowing = {"exclude_modules", "layers_to_transform", "layers_pattern"} & type(peft_config).model_fields.keys()
        named = {"target_modules": targets_in(state_dict, model), **dict.fromkeys(narrowing)}
        peft_config = peft_config.model_copy(update=named)
    Tuner(model, peft_config, adapter_name, low_cpu_mem_usage)
    return model
