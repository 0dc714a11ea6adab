"""Base models with random weights, inputs, and one adapter file that every contender loads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

TARGETS = {
    "bert": ["query", "key", "value", "dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}

_BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _llama(hidden: int, intermediate: int, layers: int, heads: int, keys: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "use_cache": False,
    }


MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> family, and what its config class takes
    "bert-base": ("bert", _BERT),
    "bert-tiny": (
        "bert",
        {**_BERT, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    ),
    "llama-tiny": ("llama", _llama(256, 688, 8, 4, 4, 1024)),
    "llama-1b": ("llama", _llama(2048, 8192, 16, 32, 8, 128256) | {"tie_word_embeddings": True}),
    "llama-7b": ("llama", _llama(4096, 11008, 32, 32, 32, 32000)),
    "llama-8b": ("llama", _llama(4096, 14336, 32, 32, 8, 128256)),
    "llama-70b": ("llama", _llama(8192, 28672, 80, 64, 8, 32000)),
}


def build(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """The same random weights on every call, in evaluation mode."""
    import transformers

    family, options = MODELS[name]
    classes = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config, model = classes[family]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model(config(**{**options, **changes})).eval()  # type: ignore[no-any-return]
    finally:
        torch.set_default_dtype(before)


def targets_of(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers that all contenders adapt."""
    names = TARGETS[model.config.model_type]  # type: ignore[union-attr,index]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in names:
            yield name, module


def quantise(model: nn.Module, bits: int) -> nn.Module:
    """The same model with its linear layers stored by bitsandbytes, in 4 (nf4) or 8 bits."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    for name, layer in list(targets_of(model)):
        sizes, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
        parent, _, child = name.rpartition(".")
        new: Any
        if bits == 4:
            new = Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
            new.weight = Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", module=new)
        else:
            new = Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
            new.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        setattr(model.get_submodule(parent), child, new.to(weight.device))  # which quantises
    setattr(model, f"is_loaded_in_{bits}bit", True)
    return model


def write_lora(
    model: nn.Module, directory: Path, *, r: int = 8, alpha: float = 12, seed: int = 1, dropout: float = 0.0
) -> int:
    """Write a LoRA adapter in PEFT's format without any library.

    A scale of 1.5 is no power of two, so that rounding shows.

    Returns:
        bytes of its tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, layer in targets_of(model):
        out, wide = layer.weight.shape
        a, b = (torch.randn(shape, generator=generator) for shape in ((r, wide), (out, r)))
        tensors[f"base_model.model.{name}.lora_A.weight"] = a / math.sqrt(wide)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b * 0.02
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": TARGETS[model.config.model_type],  # type: ignore[union-attr,index]
        "bias": "none",
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return sum(t.numel() * t.element_size() for t in tensors.values())


def inputs(model: nn.Module, rows: int, columns: int, device: str = "cpu") -> dict[str, Tensor]:
    """Random token ids and a full mask, each ``(rows, columns)``."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, columns), generator=generator)  # type: ignore[union-attr,arg-type]
    return {"input_ids": ids.to(device), "attention_mask": torch.ones(rows, columns, dtype=torch.long, device=device)}


def output(result: Any) -> Tensor:
    return result.logits if hasattr(result, "logits") else result.last_hidden_state  # type: ignore[no-any-return]


def loss(result: Any, ids: Tensor) -> Tensor:
    """Cross entropy of the next token, or for a model without a vocabulary the mean square."""
    out = output(result).float()
    if not hasattr(result, "logits"):
        return out.pow(2).mean()
    return nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class DeviationError(Exception):
    """Contenders compute different things: no time is worth comparing."""


def check_equal(what: str, outputs: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare every contender's output with the first one's.

    Raises:
        DeviationError: a relative deviation above ``tolerance``.
    """
    (first, expected), *others = outputs.items()
    expected = expected.detach().double()
    for name, actual in others:
        deviation = float((actual.detach().double() - expected).norm() / expected.norm().clamp_min(1e-30))
        if not deviation <= tolerance:
            raise DeviationError(f"{what}: {name} deviates from {first} by {deviation:.2e}, allowed {tolerance:.0e}")


def tolerance(dtype: torch.dtype) -> float:
    """The relative deviation that rounding explains in a deep model."""
    return 1e-4 if dtype == torch.float32 else 3e-2
