"""What a layer method says about itself, read off its adapter class."""

from __future__ import annotations

from adapterkit.nn.adapter import LayerAdapter


def adapts(adapter: type[LayerAdapter], kind: str) -> bool:
    """Whether a method adapts layers of a kind (`adapterkit.nn.view.Kind`)."""
    if kind == "attention":  # through its two projections, which are parameters that no layer of their own applies
        return "linear" in adapter.kinds and adapter.mergeable
    return bool({"any", kind} & adapter.kinds)


def merges(adapter: type[LayerAdapter], kind: str) -> bool:
    """Whether a method's adapter of a layer of a kind can be merged into the layer's weight."""
    states_weight = adapter.adapt_weight is not LayerAdapter.adapt_weight
    probed = kind in ("linear", "embedding", "attention")  # whose weight the adapted identity shows
    return adapts(adapter, kind) and adapter.mergeable and (states_weight or probed)


def combines(adapter: type[LayerAdapter]) -> bool:
    """Whether `PeftModel.add_weighted_adapter` can make one adapter of several."""
    own, inherited = adapter.combined_config, LayerAdapter.combined_config
    return adapter.sums or getattr(own, "__func__", own) is not getattr(inherited, "__func__", inherited)
