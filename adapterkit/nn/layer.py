"""The one wrapper around a frozen layer, whatever its kind and whatever adapts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn import storage
from adapterkit.nn.adapter import LayerAdapter, wrap
from adapterkit.nn.selection import Routes, Selection
from adapterkit.nn.view import LayerView


class AdaptedLayer(nn.Module):
    """A frozen ``base_layer`` and the adapters around it, by adapter name."""

    def __init__(self, base_layer: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.tokens = nn.ModuleDict()  # trained rows of an embedding, by adapter name
        self.adapters = nn.ModuleDict()  # the methods' own
        self.biases = nn.ModuleDict()  # trained copies of the layer's own bias
        self.selection = selection
        self.view = LayerView(base_layer)
        self.merged_adapters: tuple[str, ...] = ()
        self._frozen: dict[str, Any] = {}  # the base layer's own parameters, kept while merged
        self._quantised: list[nn.Module] = []  # the base layer itself where it is quantised, kept while merged

    @property
    def slots(self) -> tuple[nn.ModuleDict, ...]:
        """What an adapter may have here, innermost first; each by adapter name."""
        return self.tokens, self.adapters, self.biases

    def names(self) -> list[str]:
        """The adapters that have something here."""
        return list(dict.fromkeys(name for slot in self.slots for name in slot))

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    @property
    def exchanged(self) -> bool:
        """Whether a plain layer stands in the place of a quantised one that was merged into."""
        return bool(self._quantised) and not storage.is_quantised(self.base_layer)

    def __getattr__(self, name: str) -> Any:
        """Foreign code reads ``weight``, ``in_features``, ... off the layer it knows."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        selection = self.selection
        if self.merged_adapters:
            if selection.routes is not None:
                raise StateError("adapter_names cannot be used while adapters are merged: unmerge first")
            if selection.enabled:
                return self.base_layer(x, *args, **kwargs)
            if self._quantised:
                return self._quantised[0](x, *args, **kwargs)
            return functional_call(self.base_layer, self._frozen, (x, *args), kwargs)
        layer: Any = self._modules["base_layer"]
        if not selection.enabled:
            return layer(x, *args, **kwargs)

        def base(x: Any) -> Any:
            return layer(x, *args, **kwargs)

        if selection.routes is not None:
            return self._routed(base, x, selection.routes)
        chain = self.chain(selection.active)
        if len(chain) == 1 and not args and not kwargs and is_plain_linear(layer):
            y = chain[0].fused(layer, x)
            if y is not None:
                return y
        return wrap(chain, base, x) if chain else layer(x, *args, **kwargs)

    def chain(self, names: Sequence[str]) -> list[LayerAdapter]:
        """What the adapters of ``names`` have here, in that order, and for each in the order of `slots`."""
        modules: Any = self._modules
        slots = [modules[slot]._modules for slot in ("tokens", "adapters", "biases")]
        return [slot[name] for name in names for slot in slots if name in slot]

    def remove(self, name: str) -> None:
        """Forget adapter ``name``."""
        for held in self.slots:
            if name in held:
                del held[name]

    def _routed(self, base: Callable[[Any], Any], x: Tensor, routes: Routes) -> Any:
        """Each row through its own adapter, and all rows through the base layer at once."""
        rows = {name: index.to(x.device) for name, index in routes.fit(x.shape[0]).rows.items()}
        chains = [(adapter, index) for name, index in rows.items() for adapter in self.chain((name,))]
        inputs = x
        for adapter, index in chains:
            if type(adapter).adapt_input is not LayerAdapter.adapt_input:
                inputs = inputs.index_copy(0, index, adapter.adapt_input(x[index]))
        y = base(inputs)
        for adapter, index in chains:
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
        names = [n for n in (self.selection.active if names is None else names) if self.chain((n,))]
        if not names:
            return 0.0
        weight, bias = merged_parameters(self.chain(names), self.view)
        if safe and not all(t.isfinite().all() for t in (weight, bias) if t is not None):
            raise StateError(f"merging adapters {names} would give values that are not finite; nothing was changed")
        if storage.is_quantised(self.base_layer):
            self._exchange(weight, bias, requantise=requantise)
        else:
            self._replace(weight, bias)
        self.merged_adapters = tuple(names)
        if not keep:
            self.forget_frozen()
        stored = LayerView(self.base_layer).weight
        return 0.0 if stored.dtype == weight.dtype and not requantise else float((stored - weight).abs().max())

    def _replace(self, weight: Tensor, bias: Tensor | None) -> None:
        """Give the base layer new parameters, and keep the old ones. New objects, so that a tied weight elsewhere
        keeps its values."""
        own: dict[str, Any] = self.base_layer._parameters
        self._frozen = {name: p for name, p in own.items() if p is not None and name in ("weight", "bias")}
        if self.view.transposed:
            weight = weight.T
        own["weight"] = nn.Parameter(weight.to(own["weight"].dtype).contiguous(), requires_grad=False)
        if bias is not None:
            own["bias"] = nn.Parameter(bias.to(own["bias"].dtype), requires_grad=False)

    def _exchange(self, weight: Tensor, bias: Tensor | None, *, requantise: bool) -> None:
        """Put another layer in the place of a quantised one, which is kept."""
        make = storage.requantised if requantise else storage.dense
        merged = make(self.base_layer, weight, bias)
        self._quantised, self.base_layer = [self.base_layer], merged

    def unmerge(self) -> None:
        """Bit for bit: the frozen parameters were kept, not recomputed."""
        if self._quantised:
            self.base_layer = self._quantised[0]
        self.base_layer._parameters.update(self._frozen)
        self.forget_frozen()
        self.merged_adapters = ()

    def forget_frozen(self) -> None:
        """Give up what was kept for `unmerge`."""
        self._frozen, self._quantised = {}, []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """`.to()`, `.half()` and the like reach the parameters that are kept while merged, too."""
        super()._apply(fn, recurse)
        with torch.no_grad():
            self._frozen = {n: nn.Parameter(fn(p), requires_grad=False) for n, p in self._frozen.items()}
            for layer in self._quantised:
                layer._apply(fn)
        return self


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether calling the layer is nothing but ``F.linear``: nobody listens to it, replaced its forward, or stores its
    weight in a way of their own."""
    if type(layer) is not nn.Linear or type(layer._parameters["weight"]) is not nn.Parameter:
        return False
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in layer.__dict__
        or any(parameter is not None and parameter.requires_grad for parameter in layer._parameters.values())
    )


def merged_parameters(chain: Sequence[LayerAdapter], view: LayerView) -> tuple[Tensor, Tensor | None]:
    """The weight and bias that do what ``chain`` does around ``view``, at least in float32.

    Adapters that state their weight are asked for it. Any other affine change is read off by running it on
    the identity: ``b' = f(0)`` and ``W' = f(I) - f(0)``.

    Raises:
        CapabilityError: the change is not affine, or adds a bias to a layer without one.
    """
    for adapter in chain:
        if not adapter.mergeable:
            raise CapabilityError(f"{type(adapter).__name__} cannot be merged: its change is not affine in the input")
    weight, bias = _at_least_float(view.weight), _at_least_float(view.bias)
    if all(adapter.states_weight for adapter in chain):
        for adapter in chain:
            weight, bias = adapter.adapt_weight(weight), adapter.adapt_bias(bias)
    elif view.kind in ("linear", "embedding"):
        weight, bias = _probed(chain, view, weight, bias)
    else:
        raise CapabilityError(f"merging into a {type(view.layer).__name__} needs adapters that define adapt_weight")
    if bias is not None and view.bias is None:
        raise CapabilityError(f"the adapters add a bias, and this {type(view.layer).__name__} has none to merge it into")
    return weight, bias


def _probed(
    chain: Sequence[LayerAdapter], view: LayerView, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    def affine(x: Tensor) -> Tensor:
        y = view.apply(x, weight)
        return y if bias is None else y + bias

    if view.kind == "embedding":
        return wrap(chain, affine, view.probe()) / view.output_scale, None
    probe = view.probe().to(weight.dtype)
    origin = wrap(chain, affine, torch.zeros_like(probe[:1]))
    adds_bias = bias is not None or bool(origin.any())
    return (wrap(chain, affine, probe) - origin).T, origin[0] if adds_bias else None


def _at_least_float(tensor: Any) -> Any:
    return tensor.float() if isinstance(tensor, Tensor) and tensor.element_size() < 4 else tensor


class BiasAdapter(LayerAdapter):
    """A trained copy of the layer's own bias: ``y + (b' - b)``, where the layer computes ``... + b``."""

    kinds = frozenset({"any"})

    def __init__(self, layer: LayerView) -> None:
        super().__init__(None, layer)
        bias = layer.bias
        if bias is None:
            raise CapabilityError(f"{type(layer.layer).__name__} has no bias to train")
        self.bias = nn.Parameter(bias.clone())  # (out_features,)

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        change = (self.bias - self.layer.bias).to(y.dtype)
        trailing = y.ndim - 2 if self.layer.kind == "conv" else 0  # the channels come before space
        return y + change.reshape(-1, *[1] * trailing)

    def adapt_weight(self, weight: Tensor) -> Tensor:
        return weight

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias + (self.bias - self.layer.bias).to(bias.dtype)
