"""What programs that serve adapters take of them, as their sources and documentation say: one entry a program.

A program that is added to `SERVERS` is one more choice of ``export --for``. Rules are those of the files named beside
them, as they were read in 2026; none of the programs was run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from adapterkit.config.base import PeftConfig
from adapterkit.config.layer import LayerConfig
from adapterkit.ondisk.header import Entry
from adapterkit.ondisk.names import PREFIX
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.ondisk.soundness import parts_of

FACTORS = re.escape(PREFIX) + r".+\.lora_[AB]\.weight"
EMBEDDED = re.escape(PREFIX) + r".+\.lora_embedding_[AB]"

_PLAIN = {
    "use_dora": "takes factors without magnitudes",
    "lora_bias": "takes factors without biases",
    "bias": "takes no trained biases",
    "modules_to_save": "takes no modules that were trained whole",
    "trainable_token_indices": "takes no trained tokens",
    "target_parameters": "is not known to take the factors of stacked experts",
    "layer_replication": "serves the base's own layers only",
    "init_lora_weights": "knows nothing of the product that this start takes away from the base",
    "alora_invocation_tokens": "applies an adapter to every token",
    "rank_pattern": "scales every layer by the one lora_alpha / r",
    "alpha_pattern": "scales every layer by the one lora_alpha / r",
    "use_qalora": "takes factors of single inputs, not of groups",
    "use_bdlora": "takes whole factors, not blocks",
}
"""What a program does that reads ``r`` and ``lora_alpha`` and nothing else of LoRA's config."""

_PEFT = frozenset({
    *("ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA", "FOURIERFT"),
    *("FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS"),
    *("MULTITASK_PROMPT_TUNING", "OFT", "OSF", "P_TUNING", "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PSOFT"),
    *("PVERA", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA"),
    *("VBLORA", "VERA", "WAVEFT", "XLORA"),
})  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A program that reads adapters."""

    title: str
    source: str
    """Where its rules stand."""
    methods: frozenset[str] = frozenset({"LORA"})
    fields: Mapping[str, str] = field(default_factory=lambda: _PLAIN)
    """Fields of a config that it does not honour, and what it does instead, after its title."""
    tensors: str = FACTORS
    """What the key of a tensor must match."""
    keys: tuple[str, ...] = ()
    """Keys that ``adapter_config.json`` must have."""
    ranks: tuple[int, ...] = ()
    """Values of its option for the largest rank, in order; the first is the default."""
    lists_targets: bool = False
    """``target_modules`` must be a list of names."""
    reads_pickled: bool = True
    without_base: str = ""
    """What to do where the config does not name the base."""
    dimensions: int | None = 2
    """Of a factor; None takes any."""


SERVERS = {
    "vllm": Server(
        "vLLM",
        "vllm/lora/peft_helper.py, vllm/lora/utils.py",
        fields={**_PLAIN, "use_dora": "refuses DoRA", "modules_to_save": "refuses any modules_to_save"},
        tensors=f"{FACTORS}|{EMBEDDED}|.+\\.(embed_tokens|lm_head)\\.base_layer\\.weight",
        keys=("r", "lora_alpha", "target_modules"),
        ranks=(16, 32, 64, 128, 256, 320, 512),
    ),
    "sglang": Server(
        "SGLang",
        "python/sglang/srt/lora/lora_config.py, sglang issue 40835",
        fields={**_PLAIN, "use_rslora": "does not read use_rslora: the scale is sqrt(r) times too small"},
        keys=("target_modules", "r", "lora_alpha"),
        lists_targets=True,
    ),
    "llamacpp": Server(
        "llama.cpp",
        "convert_lora_to_gguf.py",
        fields={
            **{key: why for key, why in _PLAIN.items() if key not in ("rank_pattern", "alora_invocation_tokens")},
            "use_rslora": "does not read use_rslora: the scale is sqrt(r) times too small",
        },
        tensors=f"{FACTORS}|{EMBEDDED}|.+\\.base_layer\\.weight",
        keys=("lora_alpha",),
        without_base="the config names no base: give convert_lora_to_gguf.py its directory by --base",
    ),
    "tgi": Server(
        "TGI",
        "server/text_generation_server/adapters/lora.py, utils/adapter.py",
        keys=("r", "lora_alpha", "target_modules"),
        reads_pickled=False,
    ),
    "peft": Server(
        "PEFT 0.21.2", "src/peft/utils/peft_types.py", methods=_PEFT, fields={}, tensors=".*", dimensions=None
    ),
}


class Cure(StrEnum):
    """What is done about a fault."""

    WRITTEN = "export writes it so"
    FOLDED = "export folds it into the factors"
    CONVERTED = "export with --base and --rank makes a LoRA adapter of it"
    MERGED = "merge the adapter into its base, and serve that"
    NONE = "no program does: what it does is no change of weights"


class Fault(NamedTuple):
    """Why a program does not compute with an adapter what it means."""

    why: str
    cure: Cure


def faults(server: Server, config: PeftConfig, tensors: Mapping[str, Entry]) -> list[Fault]:
    """Why a program cannot serve an adapter, or would compute something else; nothing where it can."""
    if config.peft_type not in server.methods:
        takes = "LORA only" if len(server.methods) == 1 else "methods of its own only"
        cure = Cure.NONE if config.is_prompt_learning or config.is_adaption_prompt else Cure.CONVERTED
        return [Fault(f"{server.title} takes {takes}, and this is {config.peft_type}", cure)]
    carried = [name for name in server.fields if config.carries(name)]
    found = [Fault(_because(server, config, name), _cure(config, tensors, name)) for name in carried]
    is_other = any(fault.cure in (Cure.CONVERTED, Cure.MERGED, Cure.NONE) for fault in found)
    return found if is_other else [*found, *_odd(server, tensors)]


def file_faults(server: Server, files: AdapterFiles) -> list[Fault]:
    """What of the files, rather than of the adapter in them, a program cannot read."""
    if files.config.peft_type not in server.methods:
        return []
    found = [Fault(f"{key} is not in the config", Cure.WRITTEN) for key in server.keys if key not in files.settings]
    targets = getattr(files.config, "target_modules", [])
    if server.lists_targets and not isinstance(targets, list):
        found.append(Fault(f"{server.title} takes target_modules as a list, not {targets!r}", Cure.WRITTEN))
    if not server.reads_pickled and files.weights.suffix != ".safetensors":
        found.append(Fault(f"{server.title} reads safetensors only, not {files.weights.name}", Cure.WRITTEN))
    return found


def advice(server: Server, config: PeftConfig) -> list[str]:
    """What whoever starts the program must know."""
    found = [server.without_base] if server.without_base and not config.base_model_name_or_path else []
    rank = max([getattr(config, "r", 0), *(getattr(config, "rank_pattern", None) or {}).values()])
    if server.ranks and rank > server.ranks[-1]:
        found.append(f"rank {rank} is above {server.ranks[-1]}, the largest that {server.title} can be told to take")
    elif server.ranks and rank > server.ranks[0]:
        enough = next(limit for limit in server.ranks if limit >= rank)
        found.append(f"rank {rank}: start {server.title} with --max-lora-rank {enough}")
    return found


def _because(server: Server, config: PeftConfig, name: str) -> str:
    return f"{name}={getattr(config, name)!r}: {server.title} {server.fields[name]}"


def _cure(config: PeftConfig, tensors: Mapping[str, Entry], name: str) -> Cure:
    if name in config.folded_fields:
        return Cure.FOLDED
    if name in config.based_fields:
        return Cure.CONVERTED
    whole = config.modules_to_save or []
    unused = name == "modules_to_save" and not any(f".{each}." in f".{key}" for each in whole for key in tensors)
    if unused:
        return Cure.WRITTEN
    return Cure.NONE if config.derived_inputs else Cure.MERGED


def _odd(server: Server, tensors: Mapping[str, Entry]) -> list[Fault]:
    strange = [key for key in tensors if not re.fullmatch(server.tensors, key)]
    found = [f"{server.title} takes no tensor {strange[0]}{_more(strange)}"] if strange else []
    deep = [key for key, entry in tensors.items() if server.dimensions not in (None, len(entry.shape))]
    deep = [key for key in deep if key not in strange]
    found += [f"{server.title} takes matrices, and {deep[0]} is {tensors[deep[0]].shape}{_more(deep)}"] if deep else []
    return [Fault(why, Cure.MERGED) for why in found]


def _more(keys: list[str]) -> str:
    return f", and {len(keys) - 1} more like it" if len(keys) > 1 else ""


def as_written(config: PeftConfig, tensors: Mapping[str, Entry], *, lists_targets: bool) -> PeftConfig:
    """The config of what its file really has: no `modules_to_save` of which there is no tensor and, if it is asked for,
    the names of the adapted modules in the place of a pattern."""
    parts = parts_of(config, tensors)
    changes: dict[str, object] = {}
    if lists_targets and isinstance(config, LayerConfig) and not isinstance(config.target_modules, list):
        changes["target_modules"] = sorted(parts.own)
    whole = config.modules_to_save or []
    if not any(f".{each}." in f".{key}" for each in whole for key in parts.others):
        changes["modules_to_save"] = None
    return config.model_copy(update=changes)
