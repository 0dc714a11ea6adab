"""The part of an adapted layer that folds adapters into its weight, and takes them out again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn import memory, storage
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.forms import LowRank
from adapterkit.nn.interrupts import uninterrupted
from adapterkit.nn.merging import add_low_rank, is_held_alone, low_rank_change, merged_parameters
from adapterkit.nn.module import Module
from adapterkit.nn.parameters import as_stored, changed_parameters, exchange
from adapterkit.nn.selection import Selection
from adapterkit.nn.view import FROZEN, LayerView, frozen_of


class MergingLayer(Module):
    """A frozen ``base_layer`` that adapters can be folded into."""

    base_layer: nn.Module
    selection: Selection
    view: LayerView
    parameter_adapters: nn.ModuleDict

    merged_adapters: tuple[str, ...] = ()
    _quantised: Sequence[nn.Module] = ()  # the base layer itself where it is quantised, kept while merged

    @abstractmethod
    def names(self) -> list[str]:
        """The adapters that have something here."""

    @abstractmethod
    def uses(self, slot: str) -> bool:
        """Whether any adapter has something in this slot."""

    @abstractmethod
    def chain(self, names: Sequence[str]) -> list[LayerAdapter]:
        """What the adapters of ``names`` have here, innermost first."""

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    @property
    def is_requantised(self) -> bool:
        """Whether what is merged is stored as the quantised base layer is."""
        return bool(self._quantised) and storage.is_quantised(self.base_layer)

    @property
    def _frozen(self) -> Mapping[str, Any]:
        """The base layer's own parameters, kept while merged."""
        return frozen_of(self.base_layer)

    @_frozen.setter
    def _frozen(self, parameters: Mapping[str, Any]) -> None:
        self.base_layer.__dict__[FROZEN] = parameters

    @torch.no_grad()
    def merge(
        self, names: Sequence[str] | None = None, *, keep: bool = True, safe: bool = False, requantise: bool = False
    ) -> float:
        """Fold adapters into the base layer's weight and bias.

        A quantised layer is replaced by a plain one in full precision.

        Args:
            names: which adapters, innermost first; None takes the active ones.
            keep: keep the frozen parameters, so that `unmerge` can put them back. Otherwise a weight that nothing else
                holds may be written to.
            safe: refuse a result that is not finite.
            requantise: store the merged weight of a quantised layer in the same way as its own.

        Returns:
            the largest absolute difference between the weight that is stored now and the exact one; not measured, and
            0, where a weight is written to.

        Raises:
            StateError: adapters are merged already, or the result is not finite; nothing has changed then.
            CapabilityError: an adapter's change cannot be expressed by a weight and a bias, or the layer computes its
                weight in every forward, as a pruned one does.
        """
        if self.merged:
            raise StateError(f"adapters {list(self.merged_adapters)} are merged already: unmerge first")
        here = set(self.names())
        names = [n for n in (self.selection.active if names is None else names) if n in here]
        if not names:
            return 0.0
        _require_stored(self.base_layer)
        change = None if self._is_special() else low_rank_change(self.chain(names), self.view)
        if change is not None:
            return self._merge_low_rank(change, names, keep=keep, safe=safe)
        merged = self._merged(names)
        _refuse_infinite(merged, names, safe=safe)
        if storage.is_quantised(self.base_layer):
            self._exchange(merged["weight"], merged.get("bias"), requantise=requantise)
        else:
            self._frozen = exchange(self.base_layer, as_stored(self.base_layer, merged))
        self.merged_adapters = tuple(names)
        error = self._merge_error(merged)
        if not keep:
            self.forget_frozen()
        return error

    def _is_special(self) -> bool:
        return storage.is_quantised(self.base_layer) or self.uses("parameter_adapters")

    def merges_in_place(self, names: Sequence[str]) -> bool:
        """Whether merging ``names`` for good writes to the weight itself, which no error of theirs can interrupt."""
        if self._is_special() or self.view.kind != "linear" or not is_held_alone(self.base_layer):
            return False
        return low_rank_change(self.chain(names), self.view) is not None

    def _merge_low_rank(self, change: LowRank, names: Sequence[str], *, keep: bool, safe: bool) -> float:
        in_place = not keep and not safe and is_held_alone(self.base_layer)
        weight = self.base_layer.get_parameter("weight").detach()
        if in_place:
            with uninterrupted():  # half of the weight with the change is neither merged nor unmerged
                error = add_low_rank(weight, change, weight, measure=keep)
                self.merged_adapters = tuple(names)
        else:
            out = (memory.empty_like if keep else torch.empty_like)(weight)
            error = add_low_rank(weight, change, out, measure=keep)
            _refuse_infinite({"weight": out}, names, safe=safe)
            self._frozen = exchange(self.base_layer, {"weight": out})
            self.merged_adapters = tuple(names)
        if not keep:
            self.forget_frozen()
        return error

    def _merged(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The base layer's parameters with adapters folded in, exact, in the orientation in which they are stored."""
        slot: Any = self.parameter_adapters if self.uses("parameter_adapters") else {}
        held: list[Any] = [slot[name] for name in names if name in slot]
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
        self.base_layer.__dict__.pop(FROZEN, None)
        self._quantised = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to()`, `.half()` and the like reach the parameters that are kept while merged, too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for layer in self._quantised:
            layer._apply(fn)  # type: ignore[no-untyped-call]
        if self._frozen:
            held: Any = nn.Module()  # as PyTorch does it: parameters stay the objects they are, which others may share
            held._parameters.update(self._frozen)
            self._frozen = held._apply(fn)._parameters
        return self


def _require_stored(layer: nn.Module) -> None:
    if storage.fetching(layer) is not None:
        raise CapabilityError(
            f"the weight of this {type(layer).__name__} is offloaded, and fetched anew for every call: merge before "
            "accelerate offloads the base model"
        )
    if storage.is_sharded(layer._parameters.get("weight")):
        raise CapabilityError(
            f"the weight of this {type(layer).__name__} is shared out among processes: merge where the model is whole, "
            "with the saved adapter"
        )
    computed = [
        n for n in ("weight", "bias") if n not in layer._parameters and isinstance(getattr(layer, n, None), Tensor)
    ]
    if computed and not storage.is_quantised(layer):
        raise CapabilityError(
            f"the {computed[0]} of this {type(layer).__name__} is computed in every forward, by pruning or a "
            "parametrization: make it a parameter first (torch.nn.utils.prune.remove, "
            "torch.nn.utils.remove_spectral_norm, torch.nn.utils.parametrize.remove_parametrizations)"
        )


def _refuse_infinite(merged: Mapping[str, Tensor], names: Sequence[str], *, safe: bool) -> None:
    if safe and not all(tensor.isfinite().all() for tensor in merged.values()):
        raise StateError(f"merging adapters {list(names)} would give values that are not finite; nothing was changed")
