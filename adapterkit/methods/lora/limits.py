"""What LoRA's settings may not ask of some kinds of layer."""

from __future__ import annotations

from adapterkit.errors import CapabilityError
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.nn.view import LayerView


def refuse(config: LoraConfig, layer: LayerView) -> None:
    """
    Raises:
        CapabilityError: what ``config`` asks for is not possible on such a layer; says what.
    """
    if layer.kind == "linear" and layer.called:
        return
    scheme = config.init_lora_weights
    is_special = isinstance(scheme, str) and scheme != "gaussian"
    is_grouped = layer.kind == "conv" and layer.layer.groups > 1
    drops_out = config.lora_dropout and not config.inference_mode  # a file says what it was trained with
    impossible = {
        "lora_bias": config.lora_bias and (layer.kind == "embedding" or not layer.called),
        "lora_dropout": drops_out and not layer.called and layer.kind != "embedding",
        "alora_invocation_tokens": config.alora_invocation_tokens is not None,
        "use_dora": config.use_dora and (layer.kind == "stack" or is_grouped),
        f"init_lora_weights={scheme!r}": is_special and (layer.kind == "stack" or is_grouped),
    }
    kinds = {"embedding": "an embedding", "conv": "a grouped convolution" if is_grouped else "a convolution"}
    what = kinds.get(layer.kind, "a parameter that no layer of its own applies")
    for setting, is_asked in impossible.items():
        if is_asked:
            raise CapabilityError(f"{setting} is not possible on {what}{_named(layer)}")


def _named(layer: LayerView) -> str:
    if layer.called:
        return ""
    name: str = getattr(layer, "name", "")
    owner, inner = type(layer.layer).__name__, name.rpartition(".")[0]
    reads = f", which a {owner} reads; exclude_modules={[inner]} leaves it out"
    return f": {name}{reads if inner else f' of a {owner}'}"
