"""The contract: what a new adapter method must say about itself.

An adapter wraps one frozen call and may change what goes in and what comes out. A layer method implements
`LayerAdapter.adapt_input` or `LayerAdapter.adapt_output`, or says the same on the weight (`WeightAdapter`); a prompt
method says its virtual tokens and where in the whole model they go (`PromptAdapter`). Merging, mixing, per-row routing,
disabling, quantised bases and saving follow from these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adapterkit.errors import BrokenPluginError, CapabilityError, CheckpointError
from adapterkit.nn.combination import Combination
from adapterkit.nn.forms import LowRank, RowForm
from adapterkit.nn.low_rank import low_rank_beside, low_rank_linear
from adapterkit.nn.module import Module, holders_in

if TYPE_CHECKING:
    from adapterkit.nn.view import LayerView


class Adapter(Module):
    """What layer and prompt adapters share: their tensors, as they stand in a file."""

    combination: ClassVar[str] = "linear"
    """How such adapters are combined where it is not said."""

    def misdescribed(self, config: Any) -> str | None:
        """What of this adapter a file with ``config`` would not say, so that another one would be loaded. Optional."""
        return None

    @classmethod
    def since(
        cls, config: Any, state: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The adapter that does what ``state`` does beyond ``start``. Optional.

        Args:
            config: of both.
            state: an adapter's tensors, by the keys that files have.
            start: the same adapter's tensors before it was trained.

        Returns:
            config and tensors of the difference.

        Raises:
            CapabilityError: no adapter of the method is the difference.
        """
        raise CapabilityError(f"{config.peft_type} adapters have no difference that is one of them")

    prefix: str = ""
    """What stands between the layer's name and the tensors' in a file."""

    @property
    def fixed(self) -> tuple[Tensor, ...]:
        """Parameters that are saved and never trained."""
        return ()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save, by the name that follows the layer's in the file."""
        return {name: held[name.rpartition(".")[2]].detach() for name, held in holders_in(self).items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave. Parameters on the meta device become the tensors themselves, without a copy.

        Raises:
            CheckpointError: names or shapes differ; names both sides.
        """
        own = holders_in(self)
        if own.keys() != tensors.keys():
            raise CheckpointError(f"expected tensors {sorted(own)}, found {sorted(tensors)}")
        for name, tensor in tensors.items():
            self._load_one(name, own[name], tensor)

    def _load_one(self, name: str, held: dict[str, Any], tensor: Tensor) -> None:
        """Let the tensor that ``held`` has under the last part of ``name`` be this one."""
        leaf = name.rpartition(".")[2]
        own = held[leaf]
        if own.shape != tensor.shape:
            raise CheckpointError(f"{name}: expected shape {tuple(own.shape)}, found {tuple(tensor.shape)}")
        if tensor.is_meta:
            return
        if own.is_meta:
            value = tensor.detach().to(device=self._device() or tensor.device, dtype=own.dtype)
            held[leaf] = nn.Parameter(value, own.requires_grad) if isinstance(own, nn.Parameter) else value
        else:
            own.detach().copy_(tensor)

    def _device(self) -> torch.device | None:
        """Where tensors are put that come from a file; None for where they are."""
        return None


class LayerAdapter(Adapter):
    """One adapter's change to one frozen layer ``y = layer(x)``.

    Say what happens to the layer's input, to its output, or to both; what is left out stays as it was.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    """The kinds of layer it adapts, of `adapterkit.nn.view.Kind`: ``linear``, ``embedding``, ``conv``, ... ``any`` is
    all of them; ``linear`` is `torch.nn.MultiheadAttention`, too, by its projections."""

    mergeable: ClassVar[bool] = True
    """Whether the change is affine in ``x``, so that some weight and bias express it."""

    def __init__(self, config: Any, layer: LayerView) -> None:
        """Read what is needed off ``config``, which is not kept, and create the parameters for ``layer``."""
        super().__init__()
        self.layer = layer

    def _device(self) -> torch.device | None:
        device = self.layer.device
        return None if device.type == "meta" else device

    def adapt_input(self, x: Tensor) -> Tensor:
        """Shape ``(rows, ..., in_features)`` to the same."""
        return x

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        """Shape ``(rows, ..., out_features)`` to the same; ``x`` is the input before `adapt_input`."""
        return y

    def adapt_weight(self, weight: Tensor) -> Tensor:
        """The same change stated on the weight, in the orientation of `LayerView.weight`. Optional: faster merging,
        and needed to merge into convolutions."""
        raise NotImplementedError

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        """The same change stated on the bias, where `adapt_weight` states the weight's."""
        return bias

    @classmethod
    def fused(cls, chain: Sequence[Any], layer: nn.Linear, x: Tensor) -> Tensor | None:
        """The whole adapted layer at once, or None where that is not possible. Optional, an accelerator: the same
        numbers as the onion, on a plain linear layer. By default for a single adapter that has `low_rank`.

        The weight must be read off ``layer`` in the call, and only tensors made in the call may be changed in place.

        Args:
            chain: the active adapters, all of this class, innermost first.
            layer: the frozen layer.
            x: ``(..., in_features)``.
        """
        change = chain[0].low_rank() if len(chain) == 1 else None
        if change is None or torch._C._are_functorch_transforms_active():
            return None
        weight: Any = layer.weight
        return low_rank_linear(x, weight, layer.bias, change.inner, change.outer, change.scaling)

    @classmethod
    def beside(cls, chain: Sequence[Any], y: Tensor, x: Tensor) -> Tensor | None:
        """What `fused` is, for a linear layer of another kind or one that is listened to, which is called as it is.
        For methods that leave the layer's input alone.

        Args:
            chain: as for `fused`.
            y: what the layer made of ``x``, ``(..., out_features)``. Others may hold it: it must not be written to.
            x: ``(..., in_features)``.
        """
        change = chain[0].low_rank() if len(chain) == 1 else None
        return None if change is None else low_rank_beside(y, x, change.inner, change.outer, change.scaling)

    def low_rank(self) -> LowRank | None:
        """All that the adapter does now, where that is ``y + scaling * outer (inner x)`` in the type of ``x``; else
        None, as while it drops something in training. Optional, an accelerator: it is computed and merged without
        matrices of the output's and the weight's size, and rows of many adapters are computed at once."""
        return None

    def row_form(self, dtype: torch.dtype) -> RowForm | None:
        """All that the adapter does to a linear layer now, in a form in which rows of many adapters are computed at
        once, its tensors of this type; None where there is none. Optional, an accelerator."""
        change = self.low_rank()
        return None if change is None else change.by_row(dtype)

    def tied(self, layer: LayerView) -> LayerAdapter:
        """The adapter that makes of an output layer, which has the weight of this one's embedding, what this one makes
        of the embedding. Optional; it has no parameters of its own.

        Raises:
            CapabilityError: the method has none, or none for such a layer.
        """
        raise CapabilityError(f"{type(self).__name__} states no change of an output layer tied to its embedding")

    @property
    def leader(self) -> LayerAdapter | None:
        """The adapter of which `tied` gave this one."""
        return None

    reads_weight: bool = False
    """Whether the `row_form` depends on the layer's weight."""

    is_method: ClassVar[bool] = True
    """False for what stands beside a method's adapter: a trained bias, trained rows of an embedding."""

    sums: ClassVar[bool] = False
    """Whether the weighted sum of two adapters' parameters is the weighted sum of what they do."""

    @classmethod
    def combined_config(cls, configs: Sequence[Any], layers: Mapping[str, Sequence[Any]], how: Combination) -> Any:
        """The config of an adapter that combines others. Optional, with `combine`.

        Args:
            configs: those of the adapters that are combined; their targets are united by the caller.
            layers: the adapters there are, by layer name.
            how: how they are combined.

        Raises:
            CapabilityError: the method has no such combination.
        """
        if not cls.sums or how.factorises or how.kind == "cat":
            raise CapabilityError(f"{configs[0].peft_type} adapters have no combination {how.kind!r}")
        return configs[0]

    def combine(self, adapters: Sequence[Any], weights: Sequence[float], how: Combination) -> None:
        """Become the combination of other adapters of this layer. This one was made from `combined_config`, and its
        parameters may be on the meta device.

        Raises:
            CapabilityError: their tensors have other shapes.
        """
        states = [adapter.tensors() for adapter in adapters]
        combined = {}
        for key, tensor in self.tensors().items():
            if any(state[key].shape != tensor.shape for state in states):
                raise CapabilityError(f"{key}: {how.kind} needs one shape, not {[s[key].shape for s in states]}")
            combined[key] = how.combine([state[key] for state in states], weights)
        self.load_tensors(combined)

    @property
    def states_weight(self) -> bool:
        """Whether this adapter states its change on the weight."""
        return type(self).adapt_weight is not LayerAdapter.adapt_weight


class WeightAdapter(LayerAdapter, ABC):
    """A method that is easier to say as a change of the weight: ``W' = adapt_weight(W)``."""

    kinds = frozenset({"linear", "embedding", "conv"})

    @abstractmethod
    def adapt_weight(self, weight: Tensor) -> Tensor:
        """Same shape as ``weight``."""

    def adapt_output(self, y: Tensor, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return y + self.layer.apply(x, self.adapt_weight(weight) - weight)


Place = Literal["embeddings", "cache"]


class PromptAdapter(Adapter):
    """One adapter's virtual tokens, put around a whole model.

    The tokens are the rows of a table. While it is trained, a network may make the table; files have the table only,
    and loading one puts it in the network's place. Masks, positions, labels, routing by row and generation follow from
    `place`.
    """

    place: ClassVar[Place] = "embeddings"
    """Where the tokens go: before the input's embeddings (``width`` is the embedding's), or into the keys and values
    of every layer (``width`` is ``layers * 2 * heads * head_dim``, the key before the value)."""

    conditional: ClassVar[bool] = False
    """Whether the tokens depend on the keyword input ``task_ids``, one integer for every row."""

    in_decoder: ClassVar[bool] = False
    """Whether an encoder-decoder model's decoder is given the second half of the table."""

    embedding: nn.Embedding  # (tokens, width), or what the network starts from

    def __init__(self, config: Any, model: nn.Module) -> None:
        """Read what is needed off ``config``, whose sizes are filled in, and create the parameters."""
        super().__init__()
        self.num_virtual_tokens: int = config.num_virtual_tokens

    def table(self) -> Tensor:
        """The tokens ``(tokens, width)``; ``tokens`` is `num_virtual_tokens`, once for each half that has some. A
        network that makes them is None once a table is loaded, and they are ``embedding.weight``."""
        return self.embedding.weight

    def tokens(self, rows: int, task_ids: Tensor | None = None) -> Tensor:
        """The tokens of every row, ``(rows, tokens, width)``; ``task_ids`` is ``(rows,)`` if `conditional`."""
        return self.table().expand(rows, -1, -1)

    def tensors(self) -> dict[str, Tensor]:
        training = self.training
        self.eval()  # a network's dropout has no place in a file
        with torch.no_grad():
            table = self.table().detach()
        self.train(training)
        own = {name: p.detach() for name, p in self._parameters.items() if p is not None}
        return {"prompt_embeddings": table, **own}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave. A network that already makes this table stays; any other gives way to it.

        Raises:
            CheckpointError: names or shapes differ; names both sides.
        """
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise CheckpointError(f"expected tensors {sorted(own)}, found {sorted(tensors)}")
        given, table = tensors["prompt_embeddings"], own.pop("prompt_embeddings")
        if given.shape != table.shape:
            raise CheckpointError(f"prompt_embeddings: expected shape {tuple(table.shape)}, found {tuple(given.shape)}")
        if not self._networks or table.is_meta or not torch.allclose(given.to(table), table, rtol=1e-4, atol=1e-6):
            self._drop_networks(table)
            self._load_one("embedding.weight", self.embedding._parameters, given)
        for name in own:
            self._load_one(name, self._parameters, tensors[name])

    @property
    def _networks(self) -> list[str]:
        return [name for name, child in self.named_children() if child is not self.embedding]

    def _drop_networks(self, table: Tensor) -> None:
        if not self._networks:
            return
        trained = self.embedding.weight.requires_grad
        self.embedding = nn.Embedding(table.shape[0], table.shape[1], _weight=table).requires_grad_(trained)
        networks = self._networks
        for name in networks:
            setattr(self, name, None)
        try:
            self.table()
        except Exception as error:
            raise BrokenPluginError(
                f"{type(self).__name__}.table() needs {', '.join(networks)}, which are None once a table is loaded: it "
                "is to give embedding.weight then"
            ) from error


def wrap(chain: Sequence[LayerAdapter], base: Callable[[Any], Any], x: Any) -> Any:
    """``base`` inside every adapter of ``chain``, the first one innermost."""
    inputs = []
    for adapter in reversed(chain):
        inputs.append(x)
        x = adapter.adapt_input(x)
    y = base(x)
    for adapter in chain:
        y = adapter.adapt_output(y, inputs.pop())
    return y
