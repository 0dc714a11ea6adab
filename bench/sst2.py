"""``python -m bench.sst2 --data DIR --model DIR``: every method trained by one short schedule, ours beside PEFT's.

``DIR`` of the data has ``train.tsv`` and ``dev.tsv``, a sentence and its label (0 or 1) by tab on every line. Both
libraries are given the same base model, batches, learning rates and seeds. Each draws its own start; ours is trained
once more from the start that PEFT drew, where only the order of sums differs. What a run gave is added to ``--results``
at once, and what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contenders import module
from bench.rows import OURS, PEFT

LAYERS = {"target_modules": ["query", "value"]}
TOKENS = {"num_virtual_tokens": 10}
METHODS: dict[str, tuple[float, dict[str, Any]]] = {  # peft_type -> learning rate, settings beside the defaults
    "LORA": (5e-3, {**LAYERS, "lora_alpha": 16}),
    "ADALORA": (1e-2, {**LAYERS, "lora_alpha": 32, "tinit": 10, "tfinal": 30}),
    "IA3": (3e-2, {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}),
    "LOHA": (5e-3, {**LAYERS, "alpha": 16}),
    "LOKR": (5e-3, {**LAYERS, "alpha": 16}),
    "OFT": (5e-3, {**LAYERS, "oft_block_size": 32}),
    "POLY": (5e-3, {**LAYERS, "n_tasks": 2}),
    "HRA": (5e-3, LAYERS),
    "PROMPT_TUNING": (3e-2, TOKENS),
    "P_TUNING": (5e-3, {**TOKENS, "encoder_hidden_size": 384}),
    "PREFIX_TUNING": (3e-2, TOKENS),
    "MULTITASK_PROMPT_TUNING": (3e-2, {**TOKENS, "num_tasks": 2}),
}
SAME_START = "adapterkit from PEFT's start"
CONTENDERS = (OURS, PEFT, SAME_START)
WITH_TASKS = ("POLY", "MULTITASK_PROMPT_TUNING")
"""Methods whose forward takes ``task_ids``."""

BATCH, LENGTH, WARMUP = 16, 32, 10
HEAD_RATE = 3e-2
"""The largest learning rate that a classifier's head is given."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What one run gave: accuracy as a share, seconds of CPU time in training."""

    method: str
    library: str
    seed: int
    steps: int
    parameters: int
    accuracy: float
    seconds: float
    loss: float
    """Mean training loss of the last ten steps."""


def main() -> None:
    options = _options()
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"})
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    results = read(options.results)
    if options.data and options.model:
        bench = Bench(options.data, options.model, options.steps)
        wanted = [(m, lib, seed) for seed in options.seeds for m in options.methods for lib in CONTENDERS]
        done = {(r.method, r.library, r.seed) for r in results if r.steps == options.steps}
        for method, library, seed in wanted:
            if (method, library, seed) not in done:
                results.append(bench.run(method, library, seed))
                _append(options.results, results[-1])
    print(table([r for r in results if r.steps == options.steps]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.sst2", description=__doc__)
    parser.add_argument("--data", type=Path, help="directory with train.tsv and dev.tsv; without it only the table")
    parser.add_argument("--model", help="an encoder, such as MiniLM: directory or Hub id")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--results", type=Path, default=Path("bench/results/sst2.jsonl"))
    return parser.parse_args()


def read(path: Path) -> list[Result]:
    """The results that a file holds; none if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def _append(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")
    print(result, flush=True)


class Bench:
    """The data, and one way to train and score any method."""

    def __init__(self, data: Path, model: str, steps: int) -> None:
        from transformers import AutoTokenizer

        self.model, self.steps = model, steps
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.train, self.dev = (self._encoded(data / f"{name}.tsv") for name in ("train", "dev"))

    def _encoded(self, path: Path) -> list[tuple[list[int], int]]:
        pairs = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        ids = self.tokenizer([text for text, _ in pairs], truncation=True, max_length=LENGTH)["input_ids"]
        return [(row, int(label)) for row, (_, label) in zip(ids, pairs, strict=True)]

    def run(self, method: str, library: str, seed: int) -> Result:
        model = self._adapted(method, library, seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        parameters = sum(p.numel() for p in trained)
        optimizer = torch.optim.AdamW(self._groups(method, model), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARMUP, (self.steps - step) / self.steps)
        )
        torch.manual_seed(seed)
        start, losses = time.process_time(), []
        for step, batch in enumerate(self._batches(seed)):
            losses.append(self._step(model.train(), optimizer, self._given(method, batch)))
            schedule.step()
            if method == "ADALORA":  # by hand for both: PEFT's never happens by itself
                model.base_model.update_and_allocate(step)
            optimizer.zero_grad(set_to_none=True)
        seconds, last = time.process_time() - start, statistics.fmean(losses[-10:])
        return Result(
            method, library, seed, self.steps, parameters, self._accuracy(method, model), round(seconds, 1), last
        )

    def _adapted(self, method: str, library: str, seed: int) -> Any:
        from transformers import AutoModelForSequenceClassification

        if library == SAME_START:
            return from_start(self._adapted(method, OURS, seed), self._adapted(method, PEFT, seed))
        fields = {"peft_type": method, "task_type": "SEQ_CLS", **METHODS[method][1]}
        if method == "ADALORA":
            fields["total_step"] = self.steps
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(self.model, num_labels=2)
        libraries = module(library)
        if library == PEFT:
            config = libraries.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[fields.pop("peft_type")](**fields)
        else:
            config = libraries.PeftConfig.from_dict(fields)
        return libraries.get_peft_model(base, config)

    @staticmethod
    def _groups(method: str, model: Any) -> list[dict[str, Any]]:
        """The head's parameters take no steps as large as those that virtual tokens need."""
        rate = METHODS[method][0]
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        head, own = ([p for name, p in named if ("modules_to_save" in name) == of_head] for of_head in (True, False))
        return [{"params": own, "lr": rate}, {"params": head, "lr": min(rate, HEAD_RATE)}]

    @staticmethod
    def _step(model: Any, optimizer: torch.optim.Optimizer, given: Batch) -> float:
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        return float(loss.item())

    @torch.no_grad()
    def _accuracy(self, method: str, model: Any) -> float:
        model.eval()
        rows = sorted(self.dev, key=lambda row: len(row[0]))
        right = 0
        for first in range(0, len(rows), 2 * BATCH):
            batch = self._given(method, self._batch(rows[first : first + 2 * BATCH]))
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
        return right / len(rows)

    def _batches(self, seed: int) -> Iterator[Batch]:
        """Batches of rows of like length, in an order that depends on the seed alone."""
        order = random.Random(seed)
        pool: list[list[tuple[list[int], int]]] = []
        for _ in range(self.steps):
            if not pool:
                rows = sorted(order.sample(self.train, 10 * BATCH), key=lambda row: len(row[0]))
                pool = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
                order.shuffle(pool)
            yield self._batch(pool.pop())

    def _batch(self, rows: Sequence[tuple[list[int], int]]) -> Batch:
        padded: Batch = dict(self.tokenizer.pad({"input_ids": [ids for ids, _ in rows]}, return_tensors="pt"))
        return {**padded, "labels": torch.tensor([label for _, label in rows])}

    @staticmethod
    def _given(method: str, batch: Batch) -> Batch:
        if method not in WITH_TASKS:
            return batch
        return {**batch, "task_ids": torch.zeros(len(batch["labels"]), dtype=torch.long)}


def from_start(model: Any, theirs: Any) -> Any:
    """Our model with the numbers that PEFT's has: those of its file, and the networks that make its virtual tokens."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        state = module(OURS).load_peft_weights(folder)
    if len(model.prompt_encoder):
        model.prompt_encoder["default"].load_state_dict(theirs.prompt_encoder["default"].state_dict())
        state["prompt_embeddings"] = model.prompt_encoder["default"].tensors()["prompt_embeddings"]
    module(OURS).set_peft_model_state_dict(model, state)
    return model


def table(results: Sequence[Result]) -> str:
    """One line a method: accuracy in percent, its mean and standard deviation over seeds."""
    lines = [
        "| method | learning rate | parameters | ours % | PEFT % | difference | noise | from PEFT's start % "
        "| seconds, ours / PEFT | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, (rate, _) in METHODS.items():
        runs = {lib: {r.seed: r for r in results if (r.method, r.library) == (method, lib)} for lib in CONTENDERS}
        seeds = sorted(runs[OURS].keys() & runs[PEFT].keys())
        same = [runs[SAME_START][seed] for seed in seeds if seed in runs[SAME_START]]
        if seeds:
            lines.append(_line(method, rate, *([runs[lib][seed] for seed in seeds] for lib in (OURS, PEFT)), same))
    return "\n".join(lines)


def _line(
    method: str, rate: float, ours: Sequence[Result], peft: Sequence[Result], same_start: Sequence[Result]
) -> str:
    means, deviations = zip(*(_moments([100 * r.accuracy for r in runs]) for runs in (ours, peft)), strict=True)
    noise = 2 * math.sqrt(sum(d * d for d in deviations) / len(ours))  # two standard errors of the difference
    scores = [f"{m:.1f} ± {d:.1f}" if len(ours) > 1 else f"{m:.1f}" for m, d in zip(means, deviations, strict=True)]
    seconds = [f"{statistics.fmean(r.seconds for r in runs):.0f}" for runs in (ours, peft)]
    counts = list(dict.fromkeys(f"{runs[0].parameters:,}" for runs in (ours, peft)))
    cells = [method, f"{rate:g}", " / ".join(counts), *scores, f"{means[0] - means[1]:+.1f}"]
    same = f"{statistics.fmean(100 * r.accuracy for r in same_start):.1f}" if len(same_start) == len(ours) else ""
    cells += [f"{noise:.1f}" if len(ours) > 1 else "", same, " / ".join(seconds), str(len(ours))]
    return f"| {' | '.join(cells)} |"


def _moments(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
