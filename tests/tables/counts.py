"""What PEFT's public comparison publishes, by `adapterkit estimate`: trained parameters, and the size of the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import adapterkit
from adapterkit.cli.estimate import count
from adapterkit.config.base import PeftConfig
from adapterkit.config.trainer import TrainerConfig
from adapterkit.registry import methods

ROOT = Path(__file__).parents[1]
PUBLISHED = json.loads((ROOT / "cli" / "published_counts.json").read_text())
FILES = json.loads((ROOT / "data" / "published_files.json").read_text())
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
IN_THE_BASE_TYPE = ("ADAPTION_PROMPT",)
"""Methods whose tensors PEFT leaves in the type of the base, bfloat16 there, as ``autocast_adapter_dtype`` does not
reach them; the tensors of all the others are float32 in both."""


class Row(NamedTuple):
    experiment: str
    parameters: int
    """By `estimate`."""
    published: int
    file: int
    """Bytes of the whole file: its tensors, and the header that their names and shapes make."""
    published_file: int
    note: str = ""

    @property
    def is_same(self) -> bool:
        return self.parameters == self.published and self.file == self.published_file


def rows() -> Iterator[Row]:
    for row in PUBLISHED["rows"]:
        if row["peft_config"]["peft_type"].lower() in methods:
            yield _row(row)


def _row(row: Mapping[str, Any]) -> Row:
    name, config, file = row["experiment"], row["peft_config"], FILES["files"][row["experiment"]]
    lorafa = name.endswith("lorafa")
    found = count(config, PUBLISHED["base_model"], trainer=TrainerConfig(lorafa=lorafa))
    note = ""
    if config["peft_type"] == "ADALORA":
        config, note = {**config, "rank_pattern": _ranks(config)}, "the file has the ranks that training left"
    elif config["peft_type"] in IN_THE_BASE_TYPE:
        note = "PEFT writes bfloat16 here, we float32: compared by two bytes a number"
    elif lorafa:
        note = "with `trainer.lorafa=true`: its optimizer freezes the first factors"
    kind = torch.bfloat16 if config["peft_type"] in IN_THE_BASE_TYPE else torch.float32
    size = file_size({key: tensor.to(kind) for key, tensor in _state(config).items()})
    return Row(name, found.trainable_parameters, row["trainable_params"], size, file, note)


def _ranks(config: Mapping[str, Any]) -> dict[str, list[bool]]:
    """AdaLoRA's ``rank_pattern`` from the published number of ranks that each layer kept."""
    return {name: [index < kept for index in range(config["init_r"])] for name, kept in FILES["adalora_ranks"].items()}


def _state(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that the file of a new adapter has, on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PUBLISHED["base_model"]))
    adapter = PeftConfig.from_dict({**config, "task_type": "CAUSAL_LM"})
    model = adapterkit.get_peft_model(base, adapter, low_cpu_mem_usage=True)
    return adapterkit.get_peft_model_state_dict(model)


def file_size(state: Mapping[str, Tensor]) -> int:
    """Bytes of the safetensors file of some tensors: eight for the header's length, the header, filled up to a multiple
    of eight, and the tensors (https://huggingface.co/docs/safetensors)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(state.items()):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def table(found: Iterable[Row] | None = None) -> str:
    lines = ["| experiment | parameters | published | file, bytes | published | note |", "|---|---|---|---|---|---|"]
    for row in rows() if found is None else found:
        numbers = (row.parameters, row.published, row.file, row.published_file)
        cells = [row.experiment, *(f"{number:,}" for number in numbers), row.note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
