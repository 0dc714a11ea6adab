"""``predict``: what a finished run's adapter says of new rows."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from adapterkit.cli.options import RUN, Options
from adapterkit.config.run import DATA_ENDINGS, DataConfig
from adapterkit.errors import EXIT_OK, ConfigError, of_choices
from adapterkit.files import refuse_no_file

KEYS = (
    "data.columns",
    "data.columns.",
    "data.format",
    "data.header",
    "data.max_length",
    "data.max_target_length",
    "data.doc_stride",
    "model.",
    "trainer.per_device_eval_batch_size",
    "trainer.use_cpu",
)
RESET = ("name", "revision", "format", "header", "train", "validation", "test", "max_train_samples", "max_eval_samples")
"""What a run says of its own data, and nothing of others."""

WRITES = (".jsonl", ".csv")


def predict(arguments: Sequence[str]) -> int:
    """``predict RUN --input FILE --to FILE``.

    Raises:
        ConfigError: a flag or a key is unknown, ``RUN`` is no run, or a file is not there or lacks a column.
        CapabilityError: the run's task cannot predict.
        CheckpointError: the run has no adapter.
    """
    options = Options(
        "predict",
        "RUN --input FILE --to FILE [--max-new-tokens N] [data.columns.ROLE=COLUMN ...] [key=value ...]",
        "What a finished run's adapter says of new rows, which need no labels. Each row is written with "
        "its own columns and the prediction: a label and probabilities, a number, a tag for each word, an answer and "
        "its span, a text, or a vector.",
    )
    options.add_argument("run", type=Path, metavar="RUN", help=RUN)
    options.add_argument(
        "--input", type=Path, metavar="FILE", required=True, help=f"the rows: {', '.join(DATA_ENDINGS)}"
    )
    options.add_argument(
        "--to", type=Path, metavar="FILE", required=True, help=f"the file to write: {' or '.join(WRITES)}"
    )
    options.add_argument("--max-new-tokens", type=int, metavar="N", help="longest text, for tasks that write one (64)")
    given, words = options.read_beside_words(arguments)
    _check(given)
    from adapterkit.cli.again import reconfigured

    fixed = {f"data.{key}": DataConfig.model_fields[key].default for key in RESET} | {"data.path": str(given.input)}
    config, _ = reconfigured("predict", given.run, words, KEYS, fixed)
    gc.enable()
    from adapterkit.train.console import console  # only now: a mistake costs no import of torch
    from adapterkit.train.prediction import predict as predicted
    from adapterkit.train.prediction import write_rows

    with console():
        found = predicted(given.run, config, new_tokens=given.max_new_tokens)
        write_rows(given.to, found.rows)
    print(f"{len(found.rows):,} rows with {', '.join(found.new)} in {given.to}")
    return EXIT_OK


def _check(given: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: a file is not there, cannot be there, or is of no known kind; or one is both.
    """
    if not given.input.is_file():
        raise ConfigError(f"--input={given.input}: no such file (from {Path.cwd()})")
    if given.to.suffix.lower() not in WRITES:
        raise ConfigError(f"--to={given.to}: its ending says no format{of_choices(given.to.suffix, WRITES)}")
    if given.to.exists() and given.to.samefile(given.input):
        raise ConfigError(f"--to={given.to}: that is the input, and would be written over")
    refuse_no_file(given.to)
    if given.max_new_tokens is not None and given.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens={given.max_new_tokens}: must be 1 or more")
