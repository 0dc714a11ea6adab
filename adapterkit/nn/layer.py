"""The one wrapper around a frozen layer, whatever its kind and whatever adapts it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.adapter import LayerAdapter, wrap
from adapterkit.nn.block import call_block, in_call, rows_of
from adapterkit.nn.kept import KeptChain, is_plain_inference, is_traced
from adapterkit.nn.merged import MergingLayer
from adapterkit.nn.module import ModuleDict
from adapterkit.nn.parameters import as_stored, changed_parameters
from adapterkit.nn.plain import is_frozen, is_plain_linear
from adapterkit.nn.routing import Part, RowsOfAdapters
from adapterkit.nn.selection import Routes, Selection
from adapterkit.nn.view import LayerView

SLOTS = ("tokens", "adapters", "biases", "parameter_adapters")
"""What an adapter may have at a layer, innermost first."""


_EXCHANGING = threading.RLock()
"""Held while a layer has other parameters than its own: it is one for all threads."""


class AdaptedLayer(MergingLayer):
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
            self._modules[name] = slot = ModuleDict()
            slot.training = self.training
            self.view.kept = self.view.kept_rows = None  # which do not know of it
        return slot  # type: ignore[no-any-return]

    def uses(self, slot: str) -> bool:
        """Whether any adapter has something in this one of `SLOTS`."""
        return bool(self._modules.get(slot))

    def names(self) -> list[str]:
        """The adapters that have something here."""
        return list(dict.fromkeys(name for slot in self.slots for name in slot))

    def __getattr__(self, name: str) -> Any:
        """Foreign code reads ``weight``, ``in_features``, ... off the layer it knows; ``lora_A``, ``scaling``, ... are
        read by adapter name, as in PEFT."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_layer", "_hf_hook", "_old_forward"):  # accelerate's, of each module
                raise
        if name in SLOTS:
            return self.slot(name)
        try:
            return getattr(self.base_layer, name)
        except AttributeError:
            found = self._of_adapters(name)
            if not found:
                raise
            return MappingProxyType(found)

    def _of_adapters(self, name: str) -> dict[str, Any]:
        """What the methods' adapters call ``name``: a tensor, a module, a rank or a scale; by adapter name."""
        adapters: Any = self._modules.get("adapters")
        found = {}
        for key, adapter in adapters.items() if adapters else ():
            numbers = {number: vars(adapter).get(number) for number in ("r", "scaling")}
            held = {**adapter._parameters, **adapter._modules, **adapter._buffers, **numbers}
            if held.get(name) is not None:
                found[key] = held[name]
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        selection = self.selection
        if selection.past is not None:
            selection.recall()
        if selection.enabled and len(args) == 1 and not kwargs and is_plain_inference():  # what is kept is not traced
            kept: KeptChain | None = self.view.kept
            if kept is not None and not self.merged_adapters and kept.serves(selection, args[0]):
                layer: Any = self._modules["base_layer"]
                return kept.apply(args[0], layer) if is_plain_linear(layer) else kept.add(layer(args[0]), args[0])
        return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        modules, selection = self._modules, self.selection
        layer: Any = modules["base_layer"]
        if self.merged_adapters:
            return self._forward_merged(args, kwargs)
        if selection.enabled:
            if modules.get("parameter_adapters"):
                return self._forward_changed(args, kwargs)
            if self.view.kind == "other":
                return call_block(layer, self._change, args, kwargs)
            if selection.routes is not None:
                return self._forward_routed(selection.routes, layer, *args, **kwargs)
            names = selection.active  # once: another thread may choose others meanwhile
            chain = self.chain(names)
            if chain:
                return self._forward_adapted(names, chain, layer, *args, **kwargs)
        if len(args) == 1 and not kwargs and is_plain_linear(layer):
            parameters = layer._parameters
            return F.linear(args[0], parameters["weight"], parameters["bias"])
        return layer(*args, **kwargs)

    def _change(self, base: Callable[[Any], Any], x: Any, inputs: Mapping[str, Any]) -> Any:
        """A whole block in its adapters; ``inputs`` are its others."""
        if self.selection.routes is not None:
            return self._routed(base, x, self.selection.routes, inputs)
        return wrap([in_call(adapter, inputs) for adapter in self.chain(self.selection.active)], base, x)

    def _forward_adapted(
        self, names: Sequence[str], chain: list[LayerAdapter], layer: Any, x: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if torch.is_grad_enabled():  # as for `kept` when rows are trained: an optimizer may write unseen
            self.view.kept = self.view.kept_rows = None
        kind = type(chain[0])
        is_one_kind = all(type(adapter) is kind for adapter in chain)
        if is_one_kind and not args and not kwargs and is_plain_linear(layer) and is_frozen(layer):
            y = kind.fused(chain, layer, x)
            if y is not None:
                self._bind_kept(names, chain)
                return y
        elif is_one_kind and self.view.kind == "linear" and kind.adapt_input is LayerAdapter.adapt_input:
            return self._forward_beside(names, chain, layer(x, *args, **kwargs), x)

        def base(x: Any) -> Any:
            return layer(x, *args, **kwargs)

        return wrap(chain, base, x)

    def _forward_beside(self, names: Sequence[str], chain: list[LayerAdapter], y: Any, x: Any) -> Any:
        """What the layer made of ``x``, adapted."""
        changed = None
        if type(y) is Tensor and type(x) in (Tensor, nn.Parameter) and not is_traced():
            changed = type(chain[0]).beside(chain, y, x)
        if changed is None:
            return wrap(chain, lambda _: y, x)
        self._bind_kept(names, chain)
        return changed

    def _bind_kept(self, names: Sequence[str], chain: list[LayerAdapter]) -> None:
        """What a forward has left of ``chain`` is for the adapters of these names."""
        kept = self.view.kept
        if kept is not None and is_plain_inference() and kept.chain == chain:
            kept.bind(names, self.slots)

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
        with nullcontext() if torch.compiler.is_compiling() else _EXCHANGING:
            return self._called_changed(args, kwargs)

    def _called_changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    def _replicate_for_data_parallel(self) -> Self:
        replica: Any = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.view, replica.__class__ = copy.copy(self.view), _Replica
        replica.view.kept = replica.view.kept_rows = None
        return replica  # type: ignore[no-any-return]

    def chain(self, names: Sequence[str]) -> list[LayerAdapter]:
        """What the adapters of ``names`` have here, in that order, and for each in the order of `slots`."""
        modules: Any = self._modules
        if len(names) == 1 and len(modules) == 2 and "adapters" in modules:  # in each forward of most models
            held = modules["adapters"]._modules.get(names[0])
            return [] if held is None else [held]
        slots = [modules[slot]._modules for slot in SLOTS[:3] if slot in modules]
        return [slot[name] for name in names for slot in slots if name in slot]

    def remove(self, name: str) -> None:
        """Forget adapter ``name``, and what was kept of it."""
        self.view.kept = self.view.kept_rows = None
        for held in self.slots:
            if name in held:
                del held[name]

    def _routed(
        self, base: Callable[[Any], Any], x: Tensor, routes: Routes, others: Mapping[str, Any] | None = None
    ) -> Any:
        """Each row through its own adapter, and all rows through the base layer at once."""
        if torch.is_grad_enabled():
            self.view.kept = None
        routes, rows = routes.fit(x.shape[0]), self.view.kept_rows
        if rows is None or not rows.serves_rows(routes, x):
            rows = RowsOfAdapters(self.slots, routes, x)
            self.view.kept_rows = rows if rows.is_kept else None
        parts = rows.parts
        if others:
            inputs = [others if part.rows is None else rows_of(others, part.rows, len(x)) for part in parts]
            parts = [p._replace(adapter=in_call(p.adapter, i)) for p, i in zip(parts, inputs, strict=True)]
        return self._by_parts(base, x, parts)

    def _by_parts(self, base: Callable[[Any], Any], x: Tensor, parts: Sequence[Part]) -> Any:
        """Each part on its rows, which are written into one input and one output."""
        inputs = x
        for part in parts:
            if part.turns_input:
                turned = part.adapter.adapt_input(part.of(x)).to(x.dtype)  # autocast gives another type
                inputs = part.put(turned, x.clone() if inputs is x and part.rows is not None else inputs)
        y = base(inputs)
        if parts and not is_plain_linear(self._modules["base_layer"]):  # type: ignore[arg-type]
            y = y.clone()  # whoever gave it may hold it
        for part in parts:
            if part.rows is None:
                y = part.adapter.adapt_output(y, x)
                continue
            with self._narrowed(part.rows, len(x)):
                y = part.put(part.adapter.adapt_output(part.of(y), part.of(x)), y)
        return y

    def _narrowed(self, rows: Tensor, size: int) -> AbstractContextManager[None]:
        selection = self.selection
        return selection.narrowed(rows, size) if selection.inputs else nullcontext()


class _Replica(AdaptedLayer):
    """A copy that `torch.nn.DataParallel` makes for one forward on another device."""

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        view: Any = self.view
        view.layer = self._modules["base_layer"]  # the adapters of the copy read the layer of the copy
        for slot in self.slots:
            for adapter in slot._modules.values():
                adapter.__dict__["layer"] = view
        return super()._forward(*args, **kwargs)


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
        return y + change.reshape(-1, *[1] * self._trailing(y))

    def _trailing(self, y: Tensor) -> int:
        """How many dimensions of ``y`` come after that of the bias: the channels come before space."""
        layer: Any = self.layer.layer
        if isinstance(layer, _ConvNd):
            return len(layer.kernel_size)
        if isinstance(layer, _NormBase | nn.GroupNorm) or (y.ndim > 2 and y.shape[-1] != len(self.bias)):
            return y.ndim - 2
        return 0

    def adapt_weight(self, weight: Tensor) -> Tensor:
        return weight

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias + self._change().to(bias.dtype)

    def _change(self) -> Tensor:
        base: Any = self.layer.bias
        change: Tensor = self.bias - base
        return change
