"""Layers that share the input embedding's weight, as output layers do, trained as one (``ensure_weight_tying``).

The embedding has the adapter, or the trained copy, and the layers tied to it follow. Files have both, as PEFT's have.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from adapterkit.config.base import PeftConfig
from adapterkit.config.layer import is_suffix
from adapterkit.errors import CapabilityError, ConfigError, TargetError
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.view import LayerView, frozen_of
from adapterkit.targets.matching import Modules, matching

FIELD = "ensure_weight_tying"

EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})
"""Names under which PEFT takes a targeted module for an embedding, which then travels with the adapter."""


class Tied:
    """The layers of a model that are to be trained as one: none, unless the config says so.

    Args:
        model: the base model.
        modules: every module by name.
        config: of the new adapter.

    Raises:
        TargetError: a new adapter asks for it, and no weight is tied.
    """

    def __init__(self, model: nn.Module, modules: Modules, config: PeftConfig) -> None:
        self.modules, self.wanted = modules, bool(getattr(config, FIELD, False))
        self.embedding = input_embedding(model, modules) if self.wanted else None
        self.followers: list[str] = []
        if self.embedding is not None:
            weight = weight_of(modules[self.embedding])
            self.followers = [n for n, m in modules.items() if n != self.embedding and weight_of(m) is weight]
        if self.wanted and not self.followers and not config.inference_mode:
            raise TargetError(f"{FIELD}: no layer of this {type(model).__name__} shares the input embedding's weight")

    def settled(self, config: PeftConfig) -> PeftConfig:
        """The config that saves the embedding in the place of every tied layer that it saves.

        Raises:
            ConfigError: tied layers train different tokens.
        """
        tokens = getattr(config, "trainable_token_indices", None)
        if self.followers and isinstance(tokens, dict):
            group = {self.embedding, *self.followers}
            stated = {n: i for n, i in tokens.items() if group & set(matching(self.modules, [n], FIELD))}
            if any(indices != next(iter(stated.values())) for indices in stated.values()):
                raise ConfigError(f"{FIELD}: tied layers train the same tokens, and trainable_token_indices={stated}")
        saved = matching(self.modules, config.modules_to_save, "modules_to_save") if config.modules_to_save else []
        if not {self.embedding, *self.followers} & set(saved):
            return config
        kept = [n for n in config.modules_to_save or () if not any(is_suffix(n, f) for f in self.followers)]
        if not any(is_suffix(n, str(self.embedding)) for n in kept):
            kept.append(str(self.embedding))
        return config.model_copy(update={"modules_to_save": kept})

    def targets(self, chosen: list[str], config: PeftConfig) -> list[str]:
        """The targets with the embedding in the place of the layers tied to it.

        Raises:
            CapabilityError: some of the tied layers are saved whole.
        """
        group = {self.embedding, *self.followers}
        if not group & set(chosen):
            return chosen
        if config.modules_to_save and group & set(matching(self.modules, config.modules_to_save, "modules_to_save")):
            raise CapabilityError(f"{FIELD}: of {sorted(map(str, group))} some are targets, and others saved whole")
        wanted = {*chosen, str(self.embedding)} - set(self.followers)
        return [name for name in self.modules if name in wanted]

    def named(self, chosen: list[str]) -> list[str]:
        """The targets as a file names them: with the layers tied to the embedding, where PEFT would not tie them by the
        embedding's name."""
        if self.embedding not in chosen or str(self.embedding).rpartition(".")[2] in EMBEDDINGS:
            return chosen
        return [name for name in self.modules if name in {*chosen, *self.followers}]

    def following(self, adapters: dict[str, Any]) -> dict[str, nn.Module]:
        """The adapters of a new adapter's called layers, by name, and those of the layers that follow one of them."""
        leader = adapters.get(str(self.embedding))
        if leader is None:
            return adapters
        return {**adapters, **{name: leader.tied(view_of(self.modules[name])) for name in self.followers}}

    def follow(self, saved: Sequence[str]) -> dict[str, str]:
        """The layers whose copies follow the embedding's, where it is among the modules that are ``saved``, by name.

        Raises:
            CapabilityError: one of them is adapted.
        """
        if self.embedding is None or self.embedding not in saved:
            return {}
        adapted = [name for name in self.followers if isinstance(self.modules[name], AdaptedLayer)]
        if adapted:
            raise CapabilityError(f"{FIELD}: {adapted} are adapted by another adapter already")
        return dict.fromkeys(self.followers, self.embedding)


def untie(tuner: Any, name: str, target: str) -> None:
    """Give a layer that follows the embedding its own weight back, in adapter ``name``, and warn of it."""
    if target in tuner.copies:
        tuner.drop_copy(name, target)
    else:
        tuner.drop(name, target)
    warnings.warn(
        f"adapter {name!r}: the file has the embedding that {FIELD} ties {target!r} to, and nothing of {target!r}: it "
        "keeps the base's weight. So PEFT computes, which ties no adapter that it made beside another one, and none of "
        "an embedding that is not called embed_tokens",
        stacklevel=3,
    )


def embedding_of(model: nn.Module) -> nn.Module | None:
    """The module that embeds a model's input, where the model says which it is."""
    try:
        return getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        return None


def input_embedding(model: nn.Module, modules: Modules) -> str | None:
    """The name of `embedding_of` the model."""
    embedding = embedding_of(model)
    return None if embedding is None else next((name for name, module in modules.items() if module is embedding), None)


def weight_of(module: nn.Module) -> Any:
    """A layer's stored weight, merged or not; an object of its own where there is none."""
    layer = module.base_layer if isinstance(module, AdaptedLayer) else module
    layer = layer.original_module if isinstance(layer, CopiedLayer) else layer
    return frozen_of(layer).get("weight", layer._parameters.get("weight", module))


def view_of(module: nn.Module) -> LayerView:
    """A module as adapters see it, adapted already or not."""
    return module.view if isinstance(module, AdaptedLayer) else LayerView(module)
