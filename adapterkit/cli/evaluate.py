"""``eval``: a finished run's adapter, scored again or on other data."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adapterkit.cli.options import RUN, Options
from adapterkit.config.run import DataConfig
from adapterkit.errors import EXIT_OK, ConfigError
from adapterkit.files import refuse_no_file, write_text

SOURCE = ("path", "name", "revision", "format", "header", "train", "validation", "test")
"""Keys of ``data`` that say where examples come from."""

KEYS = ("data.", "model.", "trainer.per_device_eval_batch_size", "trainer.use_cpu")


def evaluate(arguments: Sequence[str]) -> int:
    """``eval RUN [data.path=... ...]``.

    Raises:
        ConfigError: a flag or a key is unknown, ``RUN`` is no run, or the data are not there.
        CheckpointError: the run has no adapter.
    """
    options = Options(
        "eval",
        "RUN [--split NAME] [--to FILE] [data.key=value ...] [model.key=value ...]",
        "The metrics of a finished run's adapter: on a split of its data, or on other data, which "
        "data.path=... names and which are scored whole.",
    )
    options.add_argument("run", type=Path, metavar="RUN", help=RUN)
    options.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        metavar="NAME",
        help="train, validation or test; by default test where there is one, else validation",
    )
    options.add_argument("--to", type=Path, metavar="FILE", help="write the numbers as JSON, too")
    given, words = options.read_beside_words(arguments)
    if given.to is not None:
        refuse_no_file(given.to)
    from adapterkit.cli.again import reconfigured

    config, chosen = reconfigured("eval", given.run, words, KEYS, _elsewhere(words))
    gc.enable()
    from adapterkit.train import screen  # only now: a mistake costs no import of torch
    from adapterkit.train.console import console
    from adapterkit.train.evaluation import evaluate as evaluated

    elsewhere = bool({f"data.{key}" for key in SOURCE} & chosen)
    with console():
        found = evaluated(given.run, config, split=given.split, elsewhere=elsewhere)
    screen.show_scores(config, found)
    if given.to is not None:
        try:
            write_text(given.to, json.dumps(asdict(found), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--to={given.to}: cannot be written: {error}") from error
    return EXIT_OK


def _elsewhere(words: Sequence[str]) -> dict[str, object]:
    """What the run said of its own data, and says nothing of others."""
    if not any(word.lstrip("+").startswith("data.path=") for word in words):
        return {}
    keys = (*(key for key in SOURCE if key != "path"), "max_eval_samples")
    return {f"data.{key}": DataConfig.model_fields[key].default for key in keys}
