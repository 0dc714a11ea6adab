"""Parameters that a module computes with itself, rather than through a layer of their own: a mixture's experts, the
projections of `torch.nn.MultiheadAttention`. Their adapters change the parameter, and the module is called with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from adapterkit.errors import CapabilityError
from adapterkit.nn.adapter import LayerAdapter
from adapterkit.nn.merging import merged_parameters
from adapterkit.nn.view import Kind, LayerView, frozen_of, sizes_of


@final
class ParameterView(LayerView):
    """One parameter of a module as adapters see a layer.

    ``weight`` is ``(out_features, in_features)``, or ``(experts, out_features, in_features)`` of kind ``stack``,
    however the module stores it.

    Args:
        module: holds the parameter.
        name: the parameter's name in it.
        bias_name: the name of the bias that goes with it, if any.
        kind: what the module computes, where it is a layer that this is the weight of.

    Raises:
        CapabilityError: the parameter has neither two nor three dimensions, or is not of floating-point numbers.
    """

    __slots__ = ("bias_name", "is_layer", "name")

    called = False

    def __init__(self, module: nn.Module, name: str, bias_name: str | None = None, *, kind: Kind | None = None) -> None:
        self.layer: Any = module
        self.name, self.bias_name, self.is_layer = name, bias_name, kind is not None
        if kind is not None:
            self.kind, self.transposed = kind, False
            self.in_features, self.out_features = sizes_of(module, kind)
            return
        parameter = module.get_parameter(name)
        if parameter.ndim not in (2, 3) or not parameter.is_floating_point():
            what = f"{parameter.dtype} {tuple(parameter.shape)}"
            raise CapabilityError(f"{name} of a {type(module).__name__} is a {what}: no adapter changes it")
        self.kind = "linear" if parameter.ndim == 2 else "stack"
        # transformers' experts say so where they multiply from the left: (experts, in, out)
        self.transposed = self.kind == "stack" and bool(getattr(module, "is_transposed", False))
        self.out_features, self.in_features = self.weight_shape[-2:]

    @property
    def part(self) -> str:
        """What patterns name of the module: a layer in it, or a parameter; empty where they name itself."""
        if self.is_layer or isinstance(self.layer, nn.MultiheadAttention):
            return ""
        inner, _, leaf = self.name.rpartition(".")
        return inner or leaf

    @property
    def weight(self) -> Tensor:
        weight = self._frozen(self.name)
        return weight.mT if self.transposed else weight

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    @property
    def bias(self) -> Tensor | None:
        return None if self.bias_name is None else self._frozen(self.bias_name)

    def _frozen(self, name: str) -> Tensor:
        own: Tensor | None = frozen_of(self.layer).get(name)
        return (self.layer.get_parameter(name) if own is None else own).detach()

    @property
    def _tensor(self) -> Tensor:
        return self.layer.get_parameter(self.name)  # type: ignore[no-any-return]


class ParameterAdapters(nn.Module):
    """One adapter's changes to parameters of one module. Two parameters are two adapters."""

    def __init__(self, adapters: Sequence[LayerAdapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)

    @property
    def parameter_names(self) -> list[str]:
        """The parameters that are changed, by name in the module."""
        return [adapter.layer.name for adapter in self.adapters]  # type: ignore[union-attr, misc]


def changed_parameters(held: Sequence[ParameterAdapters], *, exact: bool) -> dict[str, Tensor]:
    """The parameters as their adapters want them, by name, in the orientation in which they are stored.

    Args:
        held: innermost first.
        exact: as for `merged_parameters`.
    """
    chains: dict[str, list[LayerAdapter]] = {}
    for adapters in held:
        for adapter in adapters.adapters:
            chains.setdefault(adapter.layer.name, []).append(adapter)  # type: ignore[union-attr, arg-type]
    changed: dict[str, Tensor] = {}
    for name, chain in chains.items():
        view: Any = chain[0].layer
        weight, bias = merged_parameters(chain, view, exact=exact)
        changed[name] = weight.mT if view.transposed else weight
        if bias is not None:
            changed[view.bias_name] = bias
    return changed


def as_stored(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for some parameters of a module, in their types."""
    return {name: value.to(module.get_parameter(name).dtype) for name, value in values.items()}


def exchange(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Give a module other parameter objects, and the old ones back to the caller. Objects rather than values, so that a
    parameter that is shared elsewhere keeps its values there."""
    before = {}
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        own: Any = module.get_submodule(path)._parameters
        before[name] = own[leaf]
        own[leaf] = value if isinstance(value, nn.Parameter) else nn.Parameter(value.contiguous(), requires_grad=False)
    return before
