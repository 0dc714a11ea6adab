"""Which base model an adapter was made on, as its file says, and whether this is the one.

The facts stand in the metadata of ``adapter_model.safetensors``, which other readers pass over: the architecture, and a
fingerprint of the weights that the adapter changes. Heads and embeddings are left out: they are made anew, or grow.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from adapterkit.architectures import model_type
from adapterkit.injection.lookup import COMPILED, plain, tuner_of
from adapterkit.injection.tuner import Tuner
from adapterkit.ondisk.names import ARCHITECTURE, WEIGHTS
from adapterkit.targets.tying import EMBEDDINGS

_SAMPLES = 64
"""How many values of every tensor count, evenly spaced, so that a model of any size takes no time."""


class OtherBaseWarning(UserWarning):
    """An adapter is put on another base model than the one it was trained on."""


def identity(model: nn.Module, name: str) -> dict[str, str]:
    """What to record of the base under adapter ``name``.

    The weights are left out where they cannot be compared later: merged, quantised, sharded, or on the meta device.
    """
    facts = {ARCHITECTURE: _architecture(model), WEIGHTS: _fingerprint(model, name)}
    return {key: fact for key, fact in facts.items() if fact}


def check_base(model: nn.Module, name: str, recorded: Mapping[str, str], source: str) -> None:
    """Warn where adapter ``name`` was made on another base than this one, as far as its file says.

    Args:
        model: the model that has just loaded it.
        name: the adapter.
        recorded: the metadata of its file.
        source: where that is.
    """
    before, now, weights = recorded.get(ARCHITECTURE), _architecture(model), recorded.get(WEIGHTS)
    if before and before != now:
        what = f"was trained on a model of type {before}, and this base is of type {now}"
    elif weights and _differ(weights, _fingerprint(model, name)):
        what = "was trained on a base with other weights than this one has"
    else:
        return
    message = f"{source}: this adapter {what}: it fits, but what it has learnt is about another model"
    warnings.warn(message, OtherBaseWarning, stacklevel=4)


def _architecture(model: nn.Module) -> str:
    base = tuner_of(model).model
    return model_type(base) or type(plain(base)).__name__


def _differ(before: str, now: str) -> bool:
    """Whether two fingerprints are of weights in the same number types, and of other values."""
    return before.partition(" ")[0] == now.partition(" ")[0] and before != now


def _weights(model: nn.Module, tuner: Tuner, name: str) -> Iterator[tuple[str, Tensor]]:
    """The matrices that adapter ``name`` changes; those of the whole backbone for a prompt."""
    if name in getattr(model, "prompt_encoder", {}):
        heads = {id(module) for copied in tuner.copies.values() for module in copied.modules()}
        parts = {target: module for target, module in tuner.names.items() if id(module) not in heads}
    else:
        parts = {target: tuner.layers[target].base_layer for target in tuner.adapted_by(name)}
    for target, module in parts.items():
        if not isinstance(module, nn.Embedding) and target.rpartition(".")[2] not in EMBEDDINGS:
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim > 1:
                    yield f"{target}.{key}".replace(COMPILED, ""), parameter.detach()


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.is_floating_point() and not tensor.is_meta


def _fingerprint(model: nn.Module, name: str) -> str:
    """Types and a hash of some values of the weights under adapter ``name``; empty where they cannot be compared."""
    tuner = tuner_of(model)
    weights = {} if tuner.merged_adapters else dict(sorted(_weights(model, tuner, name)))
    if not weights or not all(_is_plain(tensor) for tensor in weights.values()):
        return ""
    types = "+".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}))
    samples = [tensor.flatten()[:: max(1, tensor.numel() // _SAMPLES)].cpu() for tensor in weights.values()]
    values = torch.cat(samples)  # one conversion: each takes 30 us
    content, end, digest = values.view(torch.uint8).numpy().tobytes(), 0, hashlib.sha256()
    for (place, tensor), sample in zip(weights.items(), samples, strict=True):
        start, end = end, end + len(sample) * values.itemsize
        digest.update(f"{place} {tuple(tensor.shape)}".encode())
        digest.update(content[start:end])
    return f"{types} {digest.hexdigest()[:32]}"
