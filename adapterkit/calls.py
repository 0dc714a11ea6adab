"""What a call of an adapted model brings beside the base model's own inputs: the adapter of each row, and the inputs
that adapters read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from adapterkit.architectures import COLUMNS_FIRST, model_type
from adapterkit.errors import CapabilityError, StateError
from adapterkit.given import misfit
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.routing import looked_at_once
from adapterkit.nn.selection import BASE, Routes
from adapterkit.registry import referenced


def prepare(tuner: Tuner, adapter_names: Sequence[str] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Put routes and inputs where the layers find them, until the call leaves them (`Selection.leave`); ``kwargs``
    loses what the base model does not know.

    Raises:
        StateError: a name in ``adapter_names`` is unknown, or their number is not the number of rows.
        CapabilityError: layers cannot tell the rows of this model apart.
    """
    selection = tuner.selection
    selection.routes = _routes(tuner, adapter_names, args, kwargs)
    selection.last_routes = selection.routes or selection.last_routes
    try:
        _take_inputs(tuner, args, kwargs)
        if selection.routes is not None or selection.inputs:
            _check_rows(tuner)
    except BaseException:
        selection.forget()
        raise


def _routes(tuner: Tuner, names: Sequence[str] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Routes | None:
    if names is None:
        return None
    if tuner.merged_adapters:
        raise StateError("adapter_names cannot be used while adapters are merged: unmerge first")
    if isinstance(names, str) or not isinstance(names, Sequence) or any(isinstance(name, list) for name in names):
        raise misfit("adapter_names", names, "a list with the name of an adapter for every row")
    tuner.require(*(name for name in dict.fromkeys(names) if name != BASE))
    sizes = [len(v) for v in [*args, *kwargs.values()] if isinstance(v, torch.Tensor) and v.ndim]
    if sizes and len(names) not in sizes:  # what is the same for all rows may have one
        raise StateError(f"adapter_names has {len(names)} names for a batch of {sizes[0]} rows")
    before = tuner.selection.last_routes
    return before if before is not None and before.names == tuple(names) else Routes.of(names)


def _check_rows(tuner: Tuner) -> None:
    """Whether layers find the batch's rows where they look for them, in dimension 0."""
    if tuner.layers and model_type(tuner.model) in COLUMNS_FIRST:
        what = "adapter_names" if tuner.selection.routes is not None else ", ".join(tuner.selection.inputs)
        raise CapabilityError(
            f"{what}: the layers of a {type(tuner.model).__name__} have the columns in dimension 0, where the rows "
            "would have to be, to be told apart"
        )


def kept_looked_at(tuner: Tuner) -> AbstractContextManager[None]:
    """For one forward after `prepare`: what the layers have kept is looked at before it, and not by each of them."""
    routes = tuner.selection.routes
    if routes is None or torch.compiler.is_compiling():
        return nullcontext()
    return looked_at_once([layer.view for layer in tuner.layers.values()], routes)


def _take_inputs(tuner: Tuner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Move the inputs that active adapters read, and the base model does not know, to where they find them."""
    selection, configs = tuner.selection, tuner.configs
    names = selection.active if selection.routes is None else selection.routes.rows
    wanted = {field for name in names if name in configs for field in configs[name].forward_inputs}
    selection.inputs.clear()
    for field in wanted:
        value = kwargs.pop(field, None)
        if value is not None:
            selection.inputs[field] = torch.as_tensor(value)
    for name in names:
        if name in configs and configs[name].derived_inputs is not None:
            _derive_inputs(tuner, name, args, kwargs)
    for field in selection.inputs:
        kwargs.pop(field, None)


def _derive_inputs(tuner: Tuner, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The inputs that adapter ``name`` makes of the model's own; where rows are routed, for its rows."""
    selection, config = tuner.selection, tuner.configs[name]
    given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    derive = referenced(type(config), "derived_inputs", str(config.derived_inputs))
    for field, made in derive(config, given, kwargs).items():
        if selection.routes is None:
            if field in selection.inputs and not torch.equal(selection.inputs[field], made):
                raise CapabilityError(f"{field} is not the same for all active adapters: activate one of them")
            selection.inputs[field] = made
            continue
        index = selection.routes.rows[name].to(made.device)
        whole = selection.inputs.setdefault(field, torch.zeros_like(made))
        selection.inputs[field] = whole.index_copy(0, index, made[index])
