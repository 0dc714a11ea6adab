"""How a layer stores its weight. The one place that knows quantisers.

A weight that is stored as numbers of its own shape is read as it is; bitsandbytes and torchao give it back
dequantised; any other linear layer is read off by running it on the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.errors import CapabilityError


def fetching(layer: nn.Module) -> Any:
    """accelerate's hook that fetches a layer's tensors for each call, where it has offloaded them; else None."""
    hook = layer.__dict__.get("_hf_hook")
    if hook is None:
        return None
    hooks = getattr(hook, "hooks", (hook,))
    return next((each for each in hooks if getattr(each, "offload", False)), None)


def fetched(layer: nn.Module, name: str) -> Tensor:
    """An offloaded parameter of a layer, where the layer computes.

    Raises:
        CapabilityError: it is stored otherwise than as numbers of its own shape.
    """
    hook, held = fetching(layer), layer.get_parameter(name)
    value: Tensor = hook.weights_map[name]
    if type(held) is not nn.Parameter or value.shape != held.shape or not value.is_floating_point():
        raise CapabilityError(f"the {name} of a {type(layer).__name__} is quantised and offloaded: it cannot be read")
    return value.to(device=hook.execution_device, dtype=held.dtype)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is, or where it is fetched to; the CPU where there is none."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                hook = fetching(module) if parameter.is_meta else None
                return parameter.device if hook is None else torch.device(hook.execution_device)
    return torch.device("cpu")


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer of unknown class is a quantised linear layer: it has the sizes of one, and no dense weight."""
    return isinstance(getattr(layer, "in_features", None), int) and isinstance(
        getattr(layer, "out_features", None), int
    )


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight is stored otherwise than as floating-point numbers of its own shape."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return is_linear(layer)
    return _is_special(weight) or not weight.dtype.is_floating_point or hasattr(weight, "quant_state")


def _is_special(weight: Tensor) -> bool:
    """Whether a class of its own says what is stored: none of torch's stand-ins for a tensor that a program is traced
    with."""
    kind = type(weight.data)
    return kind is not Tensor and not is_sharded(weight) and not kind.__module__.startswith("torch._subclasses")


def is_sharded(tensor: Any) -> bool:
    """Whether several processes share a tensor out, as FSDP's second version does."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Any) -> Tensor:
    """All of a tensor that may be shared out. Every process has to ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def backend(layer: nn.Module) -> str | None:
    """What quantised the weight: ``"bnb 4bit"``, ``"bnb 8bit"``, ``"torchao"``, else the layer's class; or None."""
    if not is_quantised(layer):
        return None
    weight = getattr(layer, "weight", None)
    name = {"Params4bit": "bnb 4bit", "Int8Params": "bnb 8bit"}.get(type(weight).__name__)
    if name is None and type(weight).__module__.startswith("torchao"):
        return "torchao"
    return name or type(layer).__name__


def numel(parameter: Tensor) -> int:
    """How many numbers a parameter stands for; 4-bit weights are stored several to an element."""
    count = parameter.numel()
    if type(parameter).__name__ == "Params4bit":
        storage: Any = getattr(parameter, "quant_storage", torch.uint8)
        return count * 2 * int(storage.itemsize)
    return count


def keeps_type(parameter: Tensor) -> bool:
    """Whether a parameter's type is part of how it is quantised, so that casting it would spoil it."""
    return type(parameter).__name__ in ("Params4bit", "Int8Params") or type(parameter).__module__.startswith("torchao")


def takes_any_type(name: str | None) -> bool:
    """Whether the layers of a `backend` take inputs, and stand beside parameters, of any floating-point type."""
    return name is None or name.startswith("bnb")


def read(layer: Any) -> Tensor:
    """The weight as floating-point numbers, in the orientation the layer's class uses."""
    weight: Any = getattr(layer, "weight", None)
    if not is_quantised(layer):
        return weight.detach()  # type: ignore[no-any-return]
    if hasattr(weight, "quant_state") or hasattr(weight, "SCB"):
        return _bitsandbytes(layer)
    if isinstance(weight, Tensor) and _is_special(weight):  # a plain one has no scales to dequantise with
        return weight.detach().dequantize()
    return _by_identity(layer)


def _bitsandbytes(layer: Any) -> Tensor:
    from bitsandbytes import functional

    weight = layer.weight
    if getattr(weight, "quant_state", None) is not None:
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            return _by_identity(layer)  # laid out anew by a forward on the CPU, in a way that only the kernel reads
        return functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[no-any-return]
    state = getattr(layer, "state", None)  # the first forward moves the 8-bit weight's scales there
    scales = getattr(weight, "SCB", None) if getattr(weight, "SCB", None) is not None else getattr(state, "SCB", None)
    if scales is not None:
        return functional.int8_vectorwise_dequant(weight.data, scales)  # type: ignore[no-any-return]
    return weight.detach()  # type: ignore[no-any-return]


@torch.no_grad()
def _by_identity(layer: Any) -> Tensor:
    """``W = (f(I) - f(0))^T`` in float32."""
    tensors = [*layer.parameters(), *layer.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    probe = torch.eye(layer.in_features, device=device)
    change: Tensor = layer(probe) - layer(torch.zeros_like(probe[:1]))
    return change.T.float()


def dense(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer in the place of a quantised one, in the type that its weight is read in.

    Args:
        layer: the quantised layer.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)`` or None.
    """
    kind = read(layer).dtype
    plain = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.to(kind), requires_grad=False)
    return plain.train(layer.training)


@torch.no_grad()
def make_dense(model: nn.Module) -> None:
    """Put a plain layer in the place of every quantised one, and say so in the model's own configuration."""
    quantised = [(name, module) for name, module in model.named_modules() if is_linear(module) and is_quantised(module)]
    for name, layer in quantised:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, dense(layer, read(layer), layer.bias))
    leave_dense(model)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """What is left of a dense weight ``(out_features, in_features)`` when bitsandbytes stores it in 4 (nf4) or 8 bits.

    Raises:
        CapabilityError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise CapabilityError("quantising needs bitsandbytes: pip install bitsandbytes") from error
    if bits == 4:
        stored, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=64)
        return functional.dequantize_4bit(stored, state)  # type: ignore[no-any-return]
    stored, scales, _ = functional.int8_vectorwise_quant(weight.half())
    return functional.int8_vectorwise_dequant(stored, scales).to(weight.dtype)  # type: ignore[no-any-return]


def requantised(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer that stores another weight in the same way.

    Args:
        layer: the quantised layer, by bitsandbytes.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)`` or None.

    Raises:
        CapabilityError: how the layer quantises is not known.
    """
    name = backend(layer)
    if name not in ("bnb 4bit", "bnb 8bit"):
        raise CapabilityError(f"{name} weights cannot be quantised anew here: merge into full precision, then quantise")
    fresh: Any = _like_4bit(layer, weight) if name == "bnb 4bit" else _like_8bit(layer, weight)
    if bias is not None:
        fresh.bias = nn.Parameter(bias.to(layer.bias.dtype), requires_grad=False)
    requantised: nn.Module = fresh.to(weight.device).train(layer.training)
    return requantised


def _like_4bit(layer: Any, weight: Tensor) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    old = layer.weight
    fresh = Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, layer.compute_dtype, device="meta"
    )
    options = {"blocksize": old.blocksize, "quant_type": old.quant_type, "quant_storage": old.quant_storage}
    state = old.quant_state  # a forward on the CPU keeps what it overwrites under original_...
    nested, kind = getattr(state, "original_nested", state.nested), getattr(state, "original_dtype", state.dtype)
    fresh.weight = Params4bit(weight.to(kind), requires_grad=False, compress_statistics=nested, module=fresh, **options)
    return fresh


def _like_8bit(layer: Any, weight: Tensor) -> Any:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    threshold = layer.state.threshold
    fresh = Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, threshold=threshold,
        device="meta",
    )  # fmt: skip
    fresh.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)  # quantised on its way back
    return fresh


def leave_dense(model: Any) -> None:
    """Say in a model's own configuration which of its linear layers are plain ones, after some have become so: it can
    be saved and loaded then. Where nothing is quantised any more, the model is no longer said to be."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return
    plain = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not is_quantised(module)
    ]
    if not any(is_quantised(module) for module in model.modules() if is_linear(module)):
        del model.config.quantization_config
        model.is_quantized = False
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "quantization_method"):
            model.__dict__.pop(flag, None)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(config, field):
            setattr(config, field, plain)
