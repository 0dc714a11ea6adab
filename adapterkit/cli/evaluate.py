"""``eval``: a finished run's adapter, scored again or on other data."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adapterkit.cli.flags import taken
from adapterkit.config.run import DataConfig
from adapterkit.errors import EXIT_OK, ConfigError

SOURCE = ("path", "name", "revision", "format", "header", "train", "validation", "test")
"""Keys of ``data`` that say where examples come from."""

KEYS = ("data.", "model.", "trainer.per_device_eval_batch_size", "trainer.use_cpu")


def evaluate(arguments: Sequence[str]) -> int:
    """``eval RUN [data.path=... ...]``.

    Raises:
        ConfigError: a flag or a key is unknown, ``RUN`` is no run, or the data are not there.
        CheckpointError: the run has no adapter.
    """
    parser = argparse.ArgumentParser(
        "adapterkit eval",
        usage="%(prog)s [--split NAME] [--to FILE] RUN [data.key=value ...] [model.key=value ...]",
        description="The metrics of a finished run's adapter: on a split of its data, or on other data, which "
        "data.path=... names and which are scored whole.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="which split; by default test where there is one, else validation",
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="write the numbers as JSON, too")
    options, words = taken(parser, arguments)
    from adapterkit.cli.again import reconfigured

    config, chosen = reconfigured("eval", options.run, words, KEYS, _elsewhere(words))
    gc.enable()
    from adapterkit.files import write_text
    from adapterkit.train import screen  # only now: a mistake costs no import of torch
    from adapterkit.train.console import console
    from adapterkit.train.evaluation import evaluate as evaluated

    elsewhere = bool({f"data.{key}" for key in SOURCE} & chosen)
    with console():
        found = evaluated(options.run, config, split=options.split, elsewhere=elsewhere)
    screen.show_scores(config, found)
    if options.to is not None:
        try:
            write_text(options.to, json.dumps(asdict(found), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--to={options.to}: cannot be written: {error}") from error
    return EXIT_OK


def _elsewhere(words: Sequence[str]) -> dict[str, object]:
    """What the run said of its own data, and says nothing of others."""
    if not any(word.lstrip("+").startswith("data.path=") for word in words):
        return {}
    keys = (*(key for key in SOURCE if key != "path"), "max_eval_samples")
    return {f"data.{key}": DataConfig.model_fields[key].default for key in keys}
