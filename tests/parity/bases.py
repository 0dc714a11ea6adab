"""What the programs in `programs/` start from: small base models built from configs, and weights that do not depend on
how a library draws its own."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import transformers
from torch import nn

IDS = torch.arange(12).reshape(3, 4) % 7 + 3
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 32}


def seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make().eval()


def bert(kind: str = "Model") -> Any:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=32)
    return seeded(lambda: getattr(transformers, f"Bert{kind}")(config))


def llama(**fields: Any) -> Any:
    config = transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, **fields})
    return seeded(lambda: transformers.LlamaForCausalLM(config))


def t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 32}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)
    return seeded(lambda: transformers.T5ForConditionalGeneration(config))


class Mlp(nn.Module):
    """A plain module: two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.act, self.lin1, self.head = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lin1(self.act(self.lin0(x))))


class Conv(nn.Module):
    """A convolution and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.conv, self.head = nn.Embedding(12, 8), nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.emb(x).transpose(1, 2)).transpose(1, 2))


def mlp() -> Mlp:
    return seeded(Mlp)


def conv() -> Conv:
    return seeded(Conv)


X = torch.linspace(-1, 1, 24).reshape(4, 6)


def fill(library: Any, model: Any, name: str = "default", scale: float = 0.3) -> None:
    """Give an adapter values that depend on its tensors' names only."""
    state = library.get_peft_model_state_dict(model, adapter_name=name)
    fresh = {}
    for key, tensor in state.items():
        seed = int.from_bytes(hashlib.blake2b(f"{name}/{key}".encode(), digest_size=6).digest())
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
        fresh[key] = noise * scale if tensor.is_floating_point() else tensor
    library.set_peft_model_state_dict(model, fresh, adapter_name=name)


def show(*values: Any) -> None:
    """Print numbers so that rounding does not show."""
    print(*(_plain(value) for value in values))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        flat = value.detach().float().flatten()
        return [round(float(v), 3) + 0.0 for v in flat[:8]] + [tuple(value.shape)]
    if isinstance(value, float):
        return round(value, 3) + 0.0
    return sorted(value) if isinstance(value, set) else value


def refused(act: Any) -> None:
    """Print whether a call is refused; what is said is each library's own."""
    try:
        act()
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        print("refused" if str(error) else "refused without a word")
    else:
        print("accepted")
