"""Which rows of which embeddings a config trains (``trainable_token_indices``), and which layers are tied to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from adapterkit.config.base import PeftConfig
from adapterkit.errors import CapabilityError, ConfigError, TargetError
from adapterkit.nn.copied import CopiedLayer
from adapterkit.nn.tokens import TiedTokens, TokenAdapter, TokenRows
from adapterkit.nn.view import LayerView
from adapterkit.targets.matching import Modules, matching
from adapterkit.targets.tying import input_embedding, view_of, weight_of

FIELD = "trainable_token_indices"


def make_token_rows(model: nn.Module, modules: Modules, config: PeftConfig) -> dict[str, TokenRows]:
    """The adapters for the tokens that ``config`` trains, by layer name.

    Layers that share the input embedding's weight follow it, unless they have indices of their own.

    Args:
        model: the base model.
        modules: every module by name.
        config: ``trainable_token_indices`` is a list for the input embedding, a dict by layer, or None.

    Raises:
        TargetError: a layer is not there, or an index is not in its vocabulary.
        CapabilityError: a layer has no rows of tokens, or is trained whole.
    """
    wanted = _wanted(model, modules, getattr(config, FIELD, None))
    if not wanted:
        return {}
    saved = matching(modules, config.modules_to_save, "modules_to_save") if config.modules_to_save else []
    for target in wanted:
        if isinstance(modules[target], CopiedLayer) or target in saved:
            raise CapabilityError(f"{FIELD}: {target!r} is trained whole, by modules_to_save")
    leader = input_embedding(model, modules)
    followers = [] if leader not in wanted else _followers(modules, leader, wanted)
    made: dict[str, TokenRows] = {}
    for target, indices in wanted.items():
        if target not in followers:
            made[target] = _checked(target, view_of(modules[target]), indices)
    for target in followers:
        made[target] = TiedTokens(view_of(modules[target]), made[str(leader)])
    return made


def _wanted(
    model: nn.Module, modules: Modules, stated: Sequence[int] | Mapping[str, Sequence[int]] | None
) -> dict[str, Sequence[int]]:
    """The token indices by layer name."""
    if not stated:
        return {}
    if isinstance(stated, Mapping):
        return {target: indices for name, indices in stated.items() for target in matching(modules, [name], FIELD)}
    embedding = input_embedding(model, modules)
    if embedding is None:
        raise TargetError(f"{FIELD}: the model does not name its input embedding; give {{name: indices}}")
    return {embedding: stated}


def _followers(modules: Modules, leader: str, wanted: Mapping[str, Sequence[int]]) -> list[str]:
    """The layers whose weight is the leader's, other than those that have indices of their own or are trained whole."""
    weight, indices = weight_of(modules[leader]), wanted[leader]
    return [
        name
        for name, module in modules.items()
        if name != leader
        and not isinstance(module, CopiedLayer)
        and weight_of(module) is weight
        and wanted.get(name, indices) == indices
    ]


def _checked(target: str, view: LayerView, indices: Sequence[int]) -> TokenRows:
    if view.kind not in TokenRows.kinds:
        raise CapabilityError(f"{FIELD}: {target!r}, a {type(view.layer).__name__}, has no rows of tokens")
    size = view.weight_shape[0]
    outside = [index for index in indices if not 0 <= index < size]
    if outside:
        raise TargetError(f"{FIELD}: {target!r} has the tokens 0 to {size - 1}, not {outside}")
    if len(set(indices)) < len(indices):
        raise ConfigError(f"{FIELD}: an index of {target!r} stands twice: {sorted(indices)}")
    return TokenAdapter(view, indices)
