"""What the parts of a model are called, family by family: model_type -> role -> module name (a name suffix).

A role is what a module is for, whatever its family calls it: ``query``, ``key``, ``value``, ``attention_out``,
``ffn_gate``, ``ffn_in``, ``ffn_out``; ``attention`` is the block that holds the first four. Where one module computes
several roles at once, each of them names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

ROLES = ("query", "key", "value", "attention_out", "ffn_gate", "ffn_in", "ffn_out", "attention")

Roles = Mapping[str, str]


def _roles(attention: str, feed_forward: str, block: str | None = None) -> Roles:
    """From ``"query key value out"`` (or one fused name and out), ``"[gate] in out"`` and the attention block."""
    names = attention.split()
    query, key, value, out = names if len(names) == 4 else (names[0], names[0], names[0], names[1])
    roles = {"query": query, "key": key, "value": value, "attention_out": out}
    widths = feed_forward.split()
    roles.update(zip(("ffn_gate", "ffn_in", "ffn_out")[3 - len(widths) :], widths, strict=True))
    return roles if block is None else {**roles, "attention": block}


_BERT = _roles("query key value attention.output.dense", "intermediate.dense output.dense")
_LLAMA = _roles("q_proj k_proj v_proj o_proj", "gate_proj up_proj down_proj", "self_attn")
_BART = _roles("q_proj k_proj v_proj out_proj", "fc1 fc2")
_T5 = _roles("q k v o", "wi wo")
_T5_GATED = _roles("q k v o", "wi_0 wi_1 wo")
_FALCON = _roles("query_key_value dense", "dense_h_to_4h dense_4h_to_h")
_GPT2 = _roles("c_attn attn.c_proj", "c_fc mlp.c_proj", "attn")
_DEBERTA_V2 = _roles("query_proj key_proj value_proj attention.output.dense", "intermediate.dense output.dense")

ARCHITECTURES: Mapping[str, Roles] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "layoutlm", "ernie", "data2vec-text", "roc_bert"),
        _BERT,
    ),
    **dict.fromkeys(
        (
            "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
            "olmo", "olmo2", "olmo3", "granite", "cohere", "cohere2", "stablelm", "smollm3", "helium", "exaone4",
            "ernie4_5", "hunyuan_v1_dense", "seed_oss", "gpt_oss", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe",
            "llama4_text", "llama4", "diffllama", "bitnet",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(
        ("nemotron", "arcee", "apertus"), _roles("q_proj k_proj v_proj o_proj", "up_proj down_proj", "self_attn")
    ),
    **dict.fromkeys(("glm", "glm4"), _roles("q_proj k_proj v_proj o_proj", "gate_up_proj down_proj", "self_attn")),
    "starcoder2": _roles("q_proj k_proj v_proj o_proj", "c_fc c_proj", "self_attn"),
    **dict.fromkeys(
        ("bart", "mbart", "opt", "m2m_100", "marian", "pegasus", "blenderbot", "whisper", "speech_to_text", "plbart"),
        _BART,
    ),
    **dict.fromkeys(("falcon", "bloom", "gpt_neox", "RefinedWeb", "RefinedWebModel"), _FALCON),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
    "t5": _T5,
    "mt5": _T5_GATED,
    "umt5": _T5_GATED,
    "mixtral": _roles("q_proj k_proj v_proj o_proj", "w1 w3 w2"),
    "distilbert": _roles("q_lin k_lin v_lin out_lin", "lin1 lin2"),
    "deberta-v2": _DEBERTA_V2,
    "deberta": _roles("in_proj attention.output.dense", "intermediate.dense output.dense"),
    "mpnet": _roles("attn.q attn.k attn.v attn.o", "intermediate.dense output.dense"),
    "albert": _roles("query key value attention.dense", "ffn ffn_output"),
    "modernbert": _roles("Wqkv attn.Wo", "mlp.Wi mlp.Wo"),
    "gptj": _roles("q_proj k_proj v_proj out_proj", "fc_in fc_out"),
    "codegen": _roles("qkv_proj out_proj", "fc_in fc_out"),
    "gpt_neo": _roles("q_proj k_proj v_proj out_proj", "c_fc c_proj"),
    "phi": _roles("q_proj k_proj v_proj dense", "fc1 fc2"),
    "phi3": _roles("qkv_proj o_proj", "gate_up_proj down_proj"),
    "mpt": _roles("Wqkv out_proj", "up_proj down_proj"),
    "chatglm": _roles("query_key_value attention.dense", "dense_h_to_4h dense_4h_to_h"),
    "clip_text_model": _BART,
    "clip_vision_model": _BART,
    "siglip_text_model": _BART,
    "siglip_vision_model": _BART,
    "rwkv": {"query": "receptance", "key": "attention.key", "value": "attention.value", "attention_out": "output"},
}  # fmt: skip


ADAPTED_WHOLE = frozenset({"bart", "mt5", "opt", "t5"})
"""Families of which some methods adapt every linear layer of a block where it is not said which."""


COLUMNS_FIRST = frozenset({"led", "longformer", "mlcd", "mlcd_vision_model", "xlnet"})
"""Families whose layers have a sequence's columns in dimension 0, where those of all others have the batch's rows."""


READ: Mapping[str, tuple[str, ...]] = {
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "JambaMambaMixer": ("dt_proj", "conv1d"),
    **dict.fromkeys(("MambaMixer", "FalconMambaMixer"), ("x_proj", "dt_proj", "out_proj", "conv1d")),
    **dict.fromkeys(
        (
            "Mamba2Mixer", "BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer", "NemotronHMamba2Mixer",
            "Zamba2MambaMixer",
        ),
        ("out_proj", "conv1d"),
    ),
    **dict.fromkeys(
        (
            "ZambaMambaMixer", "Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet",
            "OlmoHybridGatedDeltaNet", "KimiLinearDeltaAttention", "BailingHybridDeltaAttention",
        ),
        ("conv1d",),
    ),
    **dict.fromkeys(("Lfm2ShortConv", "Lfm2MoeShortConv"), ("conv",)),
    "LongcatFlashTopkRouter": ("classifier",),
    **dict.fromkeys(
        ("DetrMHAttentionMap", "ConditionalDetrMHAttentionMap", "MaskFormerDetrMHAttentionMap"), ("k_proj",)
    ),
    "DabDetrMHAttentionMap": ("k_linear",),
    **dict.fromkeys(  # torchvision's
        ("ShiftedWindowAttention", "ShiftedWindowAttentionV2", "ShiftedWindowAttention3d"), ("qkv", "proj")
    ),
    **dict.fromkeys(
        ("EvaAttention", "timm.models.beit.Attention", "timm.models.swin_transformer_v2.WindowAttention"), ("qkv",)
    ),
    "HunyuanDiTAttentionPool": ("q_proj", "k_proj", "v_proj", "c_proj"),  # of diffusers
}  # fmt: skip
"""Blocks that read the weights of layers in them, where they would be called: class -> the layers' names. Some do so on
a GPU, or in training, only. A class is named with its module where others of its name call theirs."""


MORE_THAN_LINEAR = frozenset({"DeepseekV4GroupedLinear", "IdeficsDecoupledLinear", "Llama4Router", "PhimoeTopKRouter"})
"""Linear layers, by class, whose call does more than to multiply by their weight: they rank experts, or have groups."""


def read_in(block: type) -> tuple[str, ...]:
    """The layers whose weights a block of this class reads, by name in it."""
    return READ.get(block.__name__) or READ.get(f"{block.__module__}.{block.__name__}", ())


class Fused(NamedTuple):
    """The layers that a family had in transformers 4 and that are parts of parameters since."""

    parameters: Mapping[str, tuple[str, ...]]
    """Parameter (a name suffix) -> the layers that it holds, in their order."""

    renamed: Mapping[str, str] = {}
    """Parts of module names -> what they are called since."""


_MIXTRAL = Fused(
    {"gate.weight": ("gate",), "gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}, {".block_sparse_moe.": ".mlp."}
)
_QWEN_MOE = Fused({"gate.weight": ("gate",), "gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)})

FUSED: Mapping[str, Fused] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL),
    **dict.fromkeys(
        (
            "afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "glm4_moe",
            "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe", "longcat_flash", "solar_open", "mellum", "qwen3_moe", "beam",
            "qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_text", "qwen3_next", "hunyuan_v1_moe",
            "flex_olmo", "olmoe", "exaone_moe", "cohere2_moe",
        ),
        _QWEN_MOE,
    ),
}  # fmt: skip
"""Families whose experts PEFT 0.21.2 finds under the names they had as layers."""

_ATTENTIONS = (
    "q_proj k_proj v_proj o_proj", "q_proj k_proj v_proj out_proj", "q_proj k_proj v_proj dense",
    "query key value attention.output.dense", "query key value output.dense", "q_b_proj kv_b_proj kv_b_proj o_proj",
    "q_proj kv_b_proj kv_b_proj o_proj", "qkv_proj o_proj", "query_key_value dense", "Wqkv out_proj", "Wqkv Wo",
    "q k v o", "q_lin k_lin v_lin out_lin", "query_proj key_proj value_proj attention.output.dense", "c_attn c_proj",
)  # fmt: skip
_FEED_FORWARDS = (
    "gate_proj up_proj down_proj", "gate_up_proj down_proj", "wi_0 wi_1 wo", "w1 w3 w2", "up_proj down_proj", "wi wo",
    "fc1 fc2", "intermediate.dense output.dense", "dense_h_to_4h dense_4h_to_h", "c_fc c_proj", "lin1 lin2", "Wi Wo",
)  # fmt: skip


def roles_of(model_type: str | None, names: Iterable[str]) -> Roles | None:
    """What a model calls its parts: as its family does or, where that is not in the table, by the names it has.

    Args:
        model_type: the family.
        names: the dotted names of the model's modules.

    Returns:
        role -> name, or None where the names follow no convention known here.
    """
    if model_type is not None and model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    ends = {".".join(name.split(".")[-length:]) for name in names for length in (1, 2, 3)}
    attention = next((known for known in _ATTENTIONS if ends.issuperset(known.split())), None)
    feed_forward = next((known for known in _FEED_FORWARDS if ends.issuperset(known.split())), "")
    return _roles(attention, feed_forward) if attention else None


def model_path(model: Any) -> str | None:
    """Where a model says it comes from: a name on the Hub, or a directory."""
    config = getattr(model, "config", None)
    return getattr(config, "name_or_path", None) or getattr(model, "name_or_path", None) or None


def model_type(model: Any) -> str | None:
    """The family a model says it belongs to, ``config.model_type``."""
    config = getattr(model, "config", None)
    if isinstance(config, dict):
        return config.get("model_type")
    return getattr(config, "model_type", None)
