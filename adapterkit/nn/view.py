"""One way to look at every kind of layer: its sizes, its weight in one orientation, and its operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adapterkit.nn import storage

Kind = Literal["linear", "embedding", "conv", "stack", "attention", "other"]

FROZEN = "_frozen_parameters"
"""Attribute of a layer that adapters are merged into: its own parameters by name, until they are put back."""


def frozen_of(layer: nn.Module) -> Mapping[str, Any]:
    """The parameters of a layer in whose place merged ones stand, by name."""
    return layer.__dict__.get(FROZEN) or {}


class LayerView:
    """A frozen layer as adapters see it, merged or not. Not a module: holding one registers no parameters.

    ``weight`` is ``(out_features, in_features)`` for linear layers however the layer stores it, ``(num_embeddings,
    embedding_dim)`` for embeddings and ``(out, in / groups, *kernel)`` for convolutions.
    """

    __slots__ = ("in_features", "inputs", "kept", "kept_rows", "kind", "layer", "out_features", "transposed")

    called: ClassVar[bool] = True
    """Whether the layer's call applies the weight, so that adapters see its input and output."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.inputs: Mapping[str, Tensor] = {}  # of the forward under way: `Selection.inputs`
        self.kept: Any = None  # what an accelerator (`LayerAdapter.fused`) keeps from one forward to the next
        self.kept_rows: Any = None  # the same for rows of many adapters
        self.kind: Kind = kind_of(layer)
        self.transposed = self.kind == "linear" and is_transposed(layer)
        self.in_features, self.out_features = sizes_of(layer, self.kind)
        if storage.fetching(layer) is not None:
            self.__class__ = _OffloadedView
        elif storage.is_sharded(layer._parameters.get("weight")):
            self.__class__ = _ShardedView

    @property
    def weight(self) -> Tensor:
        """The frozen weight, dequantised if need be."""
        frozen: Tensor | None = frozen_of(self.layer).get("weight")
        weight = storage.read(self.layer) if frozen is None else frozen.detach()
        return weight.T if self.transposed else weight

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of `weight`, without reading it."""
        if self.kind == "embedding":
            return self.in_features, self.out_features
        if self.kind == "conv":
            return self.out_features, self.in_features // self.layer.groups, *self.layer.kernel_size
        return self.out_features, self.in_features

    @property
    def bias(self) -> Tensor | None:
        bias = frozen_of(self.layer).get("bias")
        bias = getattr(self.layer, "bias", None) if bias is None else bias
        return bias.detach() if isinstance(bias, Tensor) else None

    @property
    def device(self) -> torch.device:
        tensor = self._tensor
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weight; float32 where the weight is quantised."""
        tensor = self._tensor
        dtype = torch.float32 if tensor is None else tensor.dtype
        return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.float32

    @property
    def _tensor(self) -> Tensor | None:
        """The weight as it is stored, or any other tensor of the layer that tells where it is."""
        weight: Tensor | None = self.layer._parameters.get("weight")
        return weight if weight is not None else next(iter((*self.layer.parameters(), *self.layer.buffers(), None)))

    def apply(self, x: Tensor, weight: Tensor, *, groups: int | None = None) -> Tensor:
        """The layer's own operation with another weight and no bias: stride, padding, dilation and groups are kept,
        unless ``groups`` says otherwise."""
        if self.kind == "embedding":
            return self.scaled(F.embedding(x, weight, self.layer.padding_idx))
        if self.kind == "conv":
            return _convolve(self.layer, x, weight, self.layer.groups if groups is None else groups)
        return F.linear(x, weight)

    def apply_product(self, x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
        """`apply` of the weight ``outer @ inner``, which is not made unless a convolution has groups.

        Args:
            x: the layer's input.
            outer: ``(rows, r)``, where the weight as a matrix is ``(rows, columns)``.
            inner: ``(r, columns)``.
        """
        if self.kind == "embedding":
            return self.scaled(F.embedding(x, outer) @ inner)
        if self.kind == "linear":
            return F.linear(F.linear(x, inner), outer)
        shape = self.weight_shape
        if self.layer.groups > 1:
            return self.apply(x, (outer @ inner).reshape(shape))
        low = self.apply(x, inner.reshape(-1, *shape[1:]))
        return self.pointwise(low, outer.reshape(*outer.shape, *[1] * (len(shape) - 2)), None)

    @property
    def output_scale(self) -> Tensor | float:
        """What an embedding multiplies the rows by that it looks up: 1 but for some families' (Gemma's, BART's)."""
        return getattr(self.layer, "embed_scale", 1.0) if self.kind == "embedding" else 1.0

    def scaled(self, y: Tensor) -> Tensor:
        """Rows that were looked up, as the layer gives them."""
        scale = self.output_scale
        if isinstance(scale, Tensor):
            return y * scale.to(y.dtype)
        return y if scale == 1 else y * scale

    def pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution of kernel size 1 in the layer's number of dimensions and groups."""
        return _CONVOLUTIONS[weight.ndim](x, weight, bias, groups=self.layer.groups)

    def probe(self) -> Tensor:
        """Inputs whose outputs are the rows (embedding) or columns (linear) of the weight."""
        if self.kind == "embedding":
            return torch.arange(self.layer.num_embeddings, device=self.device)
        return torch.eye(self.in_features, device=self.device)


class _OffloadedView(LayerView):
    """A layer whose tensors accelerate keeps elsewhere between its calls."""

    __slots__ = ()

    @property
    def weight(self) -> Tensor:
        if not self.layer.weight.is_meta:
            return super().weight
        weight = storage.fetched(self.layer, "weight")
        return weight.T if self.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        bias = super().bias
        return storage.fetched(self.layer, "bias") if bias is not None and bias.is_meta else bias

    @property
    def device(self) -> torch.device:
        device = super().device
        return torch.device(storage.fetching(self.layer).execution_device) if device.type == "meta" else device


class _ShardedView(LayerView):
    """A layer whose tensors several processes share out, but for the time of its calls."""

    __slots__ = ()

    @property
    def weight(self) -> Tensor:
        return storage.gathered(super().weight)

    @property
    def bias(self) -> Tensor | None:
        bias = super().bias
        return None if bias is None else storage.gathered(bias)


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the weight's dimensions


def _convolve(layer: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    return _CONVOLUTIONS[weight.ndim](x, weight, None, layer.stride, padding, layer.dilation, groups)


_CALLS = frozenset(layer.forward for layer in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding))


def calls_otherwise(layer: Any) -> bool:
    """Whether a convolution's or embedding's class has a call of its own, which may pad, look up other rows than it is
    given, or change the weight first. An embedding that only scales is seen as one."""
    if kind_of(layer) not in ("conv", "embedding"):
        return False
    return not (type(layer).forward in _CALLS or hasattr(layer, "embed_scale") or storage.is_quantised(layer))


def is_transposed(layer: nn.Module) -> bool:
    """Whether a linear layer stores ``(in, out)``, as GPT-2's does."""
    return type(layer).__name__ == "Conv1D"


def kind_of(layer: nn.Module) -> Kind:
    """What a layer computes, whatever its class and storage."""
    if isinstance(layer, nn.Embedding):
        return "embedding"
    if isinstance(layer, nn.MultiheadAttention):
        return "attention"
    if isinstance(layer, _ConvNd):
        return "conv" if not layer.transposed else "other"
    if isinstance(layer, nn.Linear) or is_transposed(layer):
        return "linear"
    return "linear" if storage.is_linear(layer) else "other"


def sizes_of(layer: Any, kind: Kind) -> tuple[int, int]:
    """``(in_features, out_features)``; an embedding maps one of ``num_embeddings`` to ``embedding_dim``."""
    if kind == "embedding":
        return layer.num_embeddings, layer.embedding_dim
    if kind == "conv":
        return layer.in_channels, layer.out_channels
    if kind in ("other", "attention"):
        return 0, 0
    if is_transposed(layer):
        return layer.weight.shape[0], layer.weight.shape[1]
    return layer.in_features, layer.out_features
