"""Folding the adapters of a model into its weights, all layers or none, and taking them out again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

from adapterkit.errors import StateError
from adapterkit.given import names_of
from adapterkit.nn.layer import AdaptedLayer
from adapterkit.nn.selection import Selection


class Folding(nn.Module):
    """The part of the tuner that merges."""

    layers: dict[str, AdaptedLayer]
    selection: Selection

    merge_errors: dict[str, float]
    """By layer: the largest absolute difference between the weight that the last merge stored and the exact one."""

    _order: tuple[str, ...] = ()  # of the last merge: a layer knows that of its own adapters only

    @abstractmethod
    def require(self, *names: str) -> None:
        """Raise StateError where one of the names is unknown."""

    @property
    def merged_adapters(self) -> tuple[str, ...]:
        """The adapters that are merged, innermost first."""
        merged = dict.fromkeys(n for layer in self.layers.values() for n in layer.merged_adapters)
        return tuple(dict.fromkeys([*(name for name in self._order if name in merged), *merged]))

    def require_unmerged(self, name: str, before: str) -> None:
        """Raise StateError where adapter ``name`` is merged; it has to be unmerged ``before`` something."""
        if name in self.merged_adapters:
            raise StateError(f"adapter {name!r} is merged: unmerge it before {before}")

    def merge(
        self,
        names: Sequence[str] | None = None,
        *,
        keep: bool = True,
        safe: bool = False,
        requantise: bool = False,
        progress: bool = False,
    ) -> None:
        """Fold adapters into the base's weights, all layers or none; see `AdaptedLayer.merge`.

        Without ``keep`` weights that nothing else holds are written to, one layer after the other, once all the others
        are merged. Interrupted then, the model still computes the same: merged layers with their new weights, the
        others with their adapters.

        Adapters that are merged already stay so, and the others come outside them: all are folded anew into the frozen
        weights, as by one call with all their names.
        """
        names = self.selection.active if names is None else names_of(names, "adapter_names")
        self.require(*names)
        if merged := self.merged_adapters:
            self._merge_on(merged, names, keep=keep, safe=safe, requantise=requantise, progress=progress)
            return
        self._order = names
        in_place = not keep and not safe
        last = {name for name, layer in self.layers.items() if in_place and layer.merges_in_place(names)}
        layers = sorted(self.layers.items(), key=lambda item: item[0] in last)
        errors: dict[str, float] = {}
        try:
            for name, layer in tqdm(layers, desc="merging", disable=not progress):
                errors[name] = layer.merge(names, keep=name not in last, safe=safe, requantise=requantise)
        except BaseException:
            for name in errors.keys() - last:
                self.layers[name].unmerge()
            raise
        self._tie_again()
        self.merge_errors = {name: error for name, error in errors.items() if self.layers[name].merged}
        if not keep:
            for layer in self.layers.values():
                layer.forget_frozen()

    def merge_for_good(self, names: Sequence[str], **options: bool) -> None:
        """`merge` these adapters in the place of those that are merged, and keep nothing to unmerge them with."""
        self.require(*names)
        self._merge_anew(self.merged_adapters, names, keep=False, **options)

    def _merge_on(self, merged: tuple[str, ...], names: Sequence[str], **options: bool) -> None:
        """`merge` of further adapters beside those that are ``merged``."""
        together = tuple(dict.fromkeys((*merged, *names)))
        if together == merged:
            return
        if any(layer.merged and not (layer._frozen or layer._quantised) for layer in self.layers.values()):
            raise StateError(f"adapters {list(merged)} are merged for good: the frozen weights are gone")
        self._merge_anew(merged, together, **options)

    def _merge_anew(self, merged: tuple[str, ...], names: Sequence[str], **options: bool) -> None:
        """`merge` into the frozen weights; where it fails, those that were ``merged`` are merged as they were."""
        stored = any(layer.is_requantised for layer in self.layers.values())
        self.unmerge()
        try:
            self.merge(names, **options)
        except BaseException:
            if merged and not self.merged_adapters:
                self.merge(merged, requantise=stored)
            raise

    def _tie_again(self) -> None:
        """Let merged weights that were one parameter, and still have one value, be one parameter."""
        first: dict[int, AdaptedLayer] = {}
        for layer in self.layers.values():
            frozen = layer._frozen.get("weight")
            if frozen is None or (other := first.setdefault(id(frozen), layer)) is layer:
                continue
            own, tied = layer.base_layer._parameters, other.base_layer._parameters
            if torch.equal(own["weight"], tied["weight"]):
                own["weight"] = tied["weight"]

    def unmerge(self) -> None:
        """Put the frozen weights back, bit for bit."""
        for layer in self.layers.values():
            layer.unmerge()
