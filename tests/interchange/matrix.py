"""Every installed method that PEFT has, too, on every task, in both directions. ``python -m tests.interchange.matrix``
runs all of it, prints it as a table, and writes that into ``docs/interchange.md``.

A cell is a method, a task and a direction: one library writes a directory, the other reads it; the keys are the same,
the tensors equal bit for bit, and the outputs up to rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import adapterkit
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.config.base import PeftConfig
from adapterkit.ondisk.reading import locate
from adapterkit.ondisk.soundness import problems
from adapterkit.registry import methods
from tests.parity.bases import IDS, bert, llama, t5
from tests.parity.helpers import add_noise, assert_same_tensors, peft, quiet, run

BASES: dict[str, Any] = {
    "SEQ_CLS": (lambda: bert("ForSequenceClassification"), ["query", "value"]),
    "TOKEN_CLS": (lambda: bert("ForTokenClassification"), ["query", "value"]),
    "QUESTION_ANS": (lambda: bert("ForQuestionAnswering"), ["query", "value"]),
    "FEATURE_EXTRACTION": (bert, ["query", "value"]),
    "CAUSAL_LM": (llama, ["q_proj", "v_proj"]),
    "SEQ_2_SEQ_LM": (t5, ["q", "v"]),
}
FIELDS: dict[str, dict[str, Any]] = {
    "IA3": {"feedforward_modules": []},
    "ADALORA": {"total_step": 100},
    "ADAPTION_PROMPT": {"adapter_layers": 1},
}


class Cell(NamedTuple):
    method: str
    task: str
    writer: str

    def __str__(self) -> str:
        return "-".join(self)


def shared() -> list[str]:
    """The installed methods that PEFT has a config for."""
    known = {str(kind.value).lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    return [name for name in methods if name in known]


def cells() -> Iterator[Cell]:
    for method in shared():
        for task in BASES:
            yield from (Cell(method, task, writer) for writer in ("adapterkit", "peft"))


def our_config(cell: Cell) -> PeftConfig:
    kind = methods[cell.method]
    fields = {"task_type": cell.task, **kind.example, **FIELDS.get(cell.method.upper(), {})}
    if "target_modules" in kind.model_fields and cell.method != "adaption_prompt":
        fields["target_modules"] = BASES[cell.task][1]
    return kind(**fields)


def their_config(config: PeftConfig) -> Any:
    """PEFT's config with the same settings; what it refuses stops the cell."""
    known = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(config.peft_type)]
    fields = {k: v for k, v in config.model_dump().items() if k in known.__dataclass_fields__ and v is not None}
    fields.pop("peft_type", None)
    return known(**fields)


def inputs(cell: Cell) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if cell.task == "SEQ_2_SEQ_LM":
        given["decoder_input_ids"] = IDS
    if cell.method in ("poly", "multitask_prompt_tuning"):
        given["task_ids"] = torch.zeros(len(IDS), dtype=torch.long)
    return given


def refusal(cell: Cell) -> str | None:
    """Why PEFT cannot make or run this pair at all; None where it can."""
    try:
        with quiet():
            theirs = peft.get_peft_model(BASES[cell.task][0](), their_config(our_config(cell))).eval()
            run(theirs, inputs(cell))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def check(cell: Cell) -> None:
    """Raises an AssertionError, or whatever a library raises, where the cell does not hold."""
    make, config = BASES[cell.task][0], our_config(cell)
    with tempfile.TemporaryDirectory() as folder, quiet():
        directory = Path(folder)
        if cell.writer == "peft":
            written = peft.get_peft_model(make(), their_config(config))
            add_noise(written)
            written.eval().save_pretrained(directory)
            read = adapterkit.PeftModel.from_pretrained(make(), directory)
            state, other = peft.get_peft_model_state_dict(written), get_peft_model_state_dict(read)
        else:
            written = adapterkit.get_peft_model(make(), config)
            add_noise(written)
            written.eval().save_pretrained(directory)
            read = peft.PeftModel.from_pretrained(make(), directory)
            state, other = get_peft_model_state_dict(written), peft.get_peft_model_state_dict(read)
        assert problems(locate(str(directory))) == []
        assert_same_tensors(other, state)
        assert any(tensor.any() for tensor in state.values())
        expected, found = run(written.eval(), inputs(cell)), run(read.eval(), inputs(cell))
        torch.testing.assert_close(*_comparable(found, expected), atol=1e-4, rtol=1e-3)


def _comparable(found: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Without the columns of virtual tokens, which PEFT leaves in some outputs."""
    if found.ndim > 1 and found.shape[1] != expected.shape[1]:
        columns = min(found.shape[1], expected.shape[1])
        return found[:, -columns:], expected[:, -columns:]
    return found, expected


PAGE = Path(__file__).parents[2] / "docs" / "interchange.md"
MARKS = {"adapterkit": "→", "peft": "←"}

_TEXT = """# Files that go both ways

PEFT {version} loads a directory that adapterkit writes (→), and adapterkit loads one that PEFT writes (←):
for each, the tensors have the same names and are equal bit for bit, the config is accepted, and the model computes the
same up to rounding. The models are tiny, with random weights, and the adapters are moved away from their start.

"no": PEFT itself makes or runs no such model; what it says is below.

Written by `python -m tests.interchange.matrix`; `tests/interchange/test_matrix.py` runs every cell anew and holds this
page to it. `tests/interchange/test_special.py` goes through what no cell shows: heads, resized and tied embeddings,
trained tokens, targeted embeddings, DoRA, patterns of ranks, several adapters in one directory, pickled files, and
transformers' own `load_adapter`; `tests/interchange/test_serving.py` through what vLLM, SGLang, TGI and llama.cpp read,
of which [serving.md](serving.md) tells.

{table}

{refusals}
"""


def page() -> str:
    """The whole matrix as a page of the documentation."""
    entries = {(method, task): _entry(method, task) for method in shared() for task in BASES}
    rows = ["| method | " + " | ".join(BASES) + " |", "|---" * (len(BASES) + 1) + "|"]
    for method in shared():
        rows.append(f"| {method} | " + " | ".join(entries[method, task][0] for task in BASES) + " |")
    refusals = [f"- {method}, {task}: {why}" for (method, task), (_, why) in entries.items() if why]
    return _TEXT.format(version=peft.__version__, table="\n".join(rows), refusals="\n".join(refusals))


def _entry(method: str, task: str) -> tuple[str, str]:
    """What stands in a field of the table, and what PEFT says where it refuses."""
    why = refusal(Cell(method, task, "peft"))
    if why:
        return "no", why
    marks = []
    for writer, mark in MARKS.items():
        try:
            check(Cell(method, task, writer))
            marks.append(mark)
        except Exception as error:
            marks.append(f"{mark} {type(error).__name__}")
    return " ".join(marks), ""


def on_page(method: str, task: str) -> str:
    """What the page has in one field of its table."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if " | " in line]
    fields = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}
    return fields[method][task]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
