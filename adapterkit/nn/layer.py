"""The one wrapper around a frozen layer, whatever its kind and whatever adapts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn import storage
from adapterkit.nn.adapter import LayerAdapter, wrap
from adapterkit.nn.block import call_block, in_call, rows_of
from adapterkit.nn.merging import merged_parameters
from adapterkit.nn.module import Module
from adapterkit.nn.parameters import as_stored, changed_parameters, exchange
from adapterkit.nn.plain import is_frozen, is_plain_linear
from adapterkit.nn.selection import Routes, Selection
from adapterkit.nn.view import LayerView

SLOTS = ("tokens", "adapters", "biases", "parameter_adapters")
"""What an adapter may have at a layer, innermost first."""


class AdaptedLayer(Module):
    """A frozen ``base_layer`` and the adapters around it, by adapter name. A slot is made when it is first used."""

    base_layer: Any
    """The frozen layer."""

    tokens: nn.ModuleDict
    """Trained rows of an embedding."""

    adapters: nn.ModuleDict
    """The methods' own."""

    biases: nn.ModuleDict
    """Trained copies of the layer's own bias."""

    parameter_adapters: nn.ModuleDict
    """Changes to parameters that no layer of their own applies."""

    merged_adapters: tuple[str, ...] = ()
    _frozen: Mapping[str, Any] = MappingProxyType({})  # the base layer's own parameters, kept while merged
    _quantised: Sequence[nn.Module] = ()  # the base layer itself where it is quantised, kept while merged

    def __init__(self, base_layer: nn.Module, selection: Selection, view: LayerView | None = None) -> None:
        super().__init__()
        self._modules["base_layer"] = base_layer
        if not base_layer.training:
            self.training = False
        self.selection = selection
        self.view = LayerView(base_layer) if view is None else view
        self.view.inputs = selection.inputs

    @property
    def slots(self) -> tuple[nn.ModuleDict, ...]:
        """Those of `SLOTS` that are in use here; each by adapter name."""
        held: Any = self._modules
        return tuple(held[slot] for slot in SLOTS if slot in held)

    def slot(self, name: str) -> nn.ModuleDict:
        """One of `SLOTS`, made if need be."""
        slot: Any = self._modules.get(name)
        if slot is None:
            self._modules[name] = slot = nn.ModuleDict()
            slot.training = self.training
        return slot  # type: ignore[no-any-return]

    def uses(self, slot: str) -> bool:
        """Whether any adapter has something in this one of `SLOTS`."""
        return bool(self._modules.get(slot))

    def names(self) -> list[str]:
        """The adapters that have something here."""
        return list(dict.fromkeys(name for slot in self.slots for name in slot))

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    def __getattr__(self, name: str) -> Any:
        """Foreign code reads ``weight``, ``in_features``, ... off the layer it knows."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
        return self.slot(name) if name in SLOTS else getattr(self.base_layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        modules, selection = self._modules, self.selection
        layer: Any = modules["base_layer"]
        if self.merged_adapters:
            return self._forward_merged(args, kwargs)
        if selection.enabled:
            if self.uses("parameter_adapters"):
                return self._forward_changed(args, kwargs)
            if self.view.kind == "other":
                return call_block(layer, self._change, args, kwargs)
            if selection.routes is not None:
                return self._forward_routed(selection.routes, layer, *args, **kwargs)
            chain = self.chain(selection.active)
            if chain:
                return self._forward_adapted(chain, layer, *args, **kwargs)
        if len(args) == 1 and not kwargs and is_plain_linear(layer):
            parameters = layer._parameters
            return F.linear(args[0], parameters["weight"], parameters["bias"])
        return layer(*args, **kwargs)

    def _change(self, base: Callable[[Any], Any], x: Any, inputs: Mapping[str, Any]) -> Any:
        """A whole block in its adapters; ``inputs`` are its others."""
        if self.selection.routes is not None:
            return self._routed(base, x, self.selection.routes, inputs)
        return wrap([in_call(adapter, inputs) for adapter in self.chain(self.selection.active)], base, x)

    def _forward_adapted(self, chain: list[LayerAdapter], layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        kind = type(chain[0])
        alike = len(chain) == 1 or all(type(adapter) is kind for adapter in chain)
        if alike and not args and not kwargs and is_plain_linear(layer) and is_frozen(layer):
            y = kind.fused(chain, layer, x)
            if y is not None:
                return y

        def base(x: Any) -> Any:
            return layer(x, *args, **kwargs)

        return wrap(chain, base, x)

    def _forward_routed(self, routes: Routes, layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        def base(x: Any) -> Any:
            return layer(x, *args, **kwargs)

        return self._routed(base, x, routes)

    def _forward_merged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.selection.routes is not None:
            raise StateError("adapter_names cannot be used while adapters are merged: unmerge first")
        if self.selection.enabled:
            return self.base_layer(*args, **kwargs)
        if self._quantised:
            return self._quantised[0](*args, **kwargs)
        return functional_call(self.base_layer, dict(self._frozen), args, kwargs)

    def _forward_changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The base layer with the parameters that adapters give it."""
        names: Any = self.selection.active
        if self.selection.routes is not None:
            names = self.selection.routes.rows
        held: list[Any] = [self.parameter_adapters[name] for name in names if name in self.parameter_adapters]
        if not held:
            return self.base_layer(*args, **kwargs)
        if self.selection.routes is not None:
            raise CapabilityError(
                f"adapter_names: a {type(self.base_layer).__name__} is called with all rows at once, "
                f"and {[name for name in names if name in self.parameter_adapters]} change its parameters"
            )
        changed = as_stored(self.base_layer, changed_parameters(held, exact=False))
        return functional_call(self.base_layer, changed, args, kwargs)

    def chain(self, names: Sequence[str]) -> list[LayerAdapter]:
        """What the adapters of ``names`` have here, in that order, and for each in the order of `slots`."""
        modules: Any = self._modules
        if len(names) == 1 and len(modules) == 2 and "adapters" in modules:  # in each forward of most models
            held = modules["adapters"]._modules.get(names[0])
            return [] if held is None else [held]
        slots = [modules[slot]._modules for slot in SLOTS[:3] if slot in modules]
        return [slot[name] for name in names for slot in slots if name in slot]

    def remove(self, name: str) -> None:
        """Forget adapter ``name``."""
        for held in self.slots:
            if name in held:
                del held[name]

    def _routed(
        self, base: Callable[[Any], Any], x: Tensor, routes: Routes, others: Mapping[str, Any] | None = None
    ) -> Any:
        """Each row through its own adapter, and all rows through the base layer at once."""
        selection = self.selection
        rows = {name: index.to(x.device) for name, index in routes.fit(x.shape[0]).rows.items()}
        chains: list[Any] = [(adapter, index) for name, index in rows.items() for adapter in self.chain((name,))]
        if others:
            chains = [(in_call(adapter, rows_of(others, index, len(x))), index) for adapter, index in chains]
        inputs = x
        for adapter, index in chains:
            if type(adapter).adapt_input is not LayerAdapter.adapt_input:
                inputs = inputs.index_copy(0, index, adapter.adapt_input(x[index]))
        y = base(inputs)
        for adapter, index in chains:
            with selection.narrowed(index, len(x)) if selection.inputs else nullcontext():
                y = y.index_copy(0, index, adapter.adapt_output(y[index], x[index]))
        return y

    @torch.no_grad()
    def merge(
        self, names: Sequence[str] | None = None, *, keep: bool = True, safe: bool = False, requantise: bool = False
    ) -> float:
        """Fold adapters into the base layer's weight and bias.

        A quantised layer is replaced by a plain one in full precision.

        Args:
            names: which adapters, innermost first; None takes the active ones.
            keep: keep the frozen parameters, so that `unmerge` can put them back.
            safe: refuse a result that is not finite.
            requantise: store the merged weight of a quantised layer in the same way as its own.

        Returns:
            the largest absolute difference between the weight that is stored now and the exact one.

        Raises:
            StateError: adapters are merged already, or the result is not finite; nothing has changed then.
            CapabilityError: an adapter's change cannot be expressed by a weight and a bias.
        """
        if self.merged:
            raise StateError(f"adapters {list(self.merged_adapters)} are merged already: unmerge first")
        here = set(self.names())
        names = [n for n in (self.selection.active if names is None else names) if n in here]
        if not names:
            return 0.0
        merged = self._merged(names)
        if safe and not all(tensor.isfinite().all() for tensor in merged.values()):
            raise StateError(f"merging adapters {names} would give values that are not finite; nothing was changed")
        if storage.is_quantised(self.base_layer):
            self._exchange(merged["weight"], merged.get("bias"), requantise=requantise)
        else:
            self._frozen = exchange(self.base_layer, as_stored(self.base_layer, merged))
        self.merged_adapters = tuple(names)
        error = self._merge_error(merged)
        if not keep:
            self.forget_frozen()
        return error

    def _merged(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The base layer's parameters with adapters folded in, exact, in the orientation in which they are stored."""
        held: list[Any] = [self.parameter_adapters[name] for name in names if name in self.parameter_adapters]
        if held:
            return changed_parameters(held, exact=True)
        weight, bias = merged_parameters(self.chain(names), self.view)
        stored = {"weight": weight.T if self.view.transposed else weight}
        return stored if bias is None else {**stored, "bias": bias}

    def _merge_error(self, merged: dict[str, Tensor]) -> float:
        """The largest difference between what is stored now and what was computed."""
        if self._quantised:
            return float((storage.read(self.base_layer) - merged["weight"]).abs().max())
        stored = {name: self.base_layer.get_parameter(name) for name in merged}
        rounded = [name for name in merged if stored[name].dtype != merged[name].dtype]
        return max([float((stored[name] - merged[name]).abs().max()) for name in rounded], default=0.0)

    def _exchange(self, weight: Tensor, bias: Tensor | None, *, requantise: bool) -> None:
        """Put another layer in the place of a quantised one, which is kept."""
        make = storage.requantised if requantise else storage.dense
        merged = make(self.base_layer, weight, bias)
        self._quantised, self.base_layer = [self.base_layer], merged

    def unmerge(self) -> None:
        """Bit for bit: the frozen parameters were kept, not recomputed."""
        if self._quantised:
            self.base_layer = self._quantised[0]
        exchange(self.base_layer, self._frozen)
        self.forget_frozen()
        self.merged_adapters = ()

    def forget_frozen(self) -> None:
        """Give up what was kept for `unmerge`."""
        self._frozen, self._quantised = {}, ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """`.to()`, `.half()` and the like reach the parameters that are kept while merged, too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._frozen = {n: nn.Parameter(fn(p), requires_grad=False) for n, p in self._frozen.items()}
            for layer in self._quantised:
                layer._apply(fn)  # type: ignore[no-untyped-call]
        return self


class BiasAdapter(LayerAdapter):
    """A trained copy of the layer's own bias: ``y + (b' - b)``, where the layer computes ``... + b``."""

    kinds = frozenset({"any"})
    is_method = False

    def __init__(self, layer: LayerView) -> None:
        super().__init__(None, layer)
        bias = layer.bias
        if bias is None:
            raise CapabilityError(f"{type(layer.layer).__name__} has no bias to train")
        self.bias = nn.Parameter(bias.clone())  # (out_features,)

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        change = self._change().to(y.dtype)
        trailing = y.ndim - 2 if self.layer.kind == "conv" else 0  # the channels come before space
        return y + change.reshape(-1, *[1] * trailing)

    def adapt_weight(self, weight: Tensor) -> Tensor:
        return weight

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias + self._change().to(bias.dtype)

    def _change(self) -> Tensor:
        base: Any = self.layer.bias
        change: Tensor = self.bias - base
        return change
