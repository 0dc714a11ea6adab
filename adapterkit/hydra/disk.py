"""Files that a run names, looked for before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from adapterkit.config.run import DATA_ENDINGS
from adapterkit.hydra.explain import Where
from adapterkit.hydra.problems import Problem

PLACES = ("data.path", "model.name_or_path", "model.tokenizer")
"""Where a configuration may name a directory or a file, or else a repository on the Hub."""


def missing_files(config: DictConfig, where: Where) -> Iterator[Problem]:
    """Paths that can only be meant to be here, as a repository's name has no such form, and are not."""
    for place in PLACES:
        value = OmegaConf.select(config, place, throw_on_missing=False, throw_on_resolution_failure=False)
        if isinstance(value, str) and _is_local(value) and not Path(value).expanduser().exists():
            yield Problem(place, f"{value}: no such file or directory (from {os.getcwd()})", where(place))


def _is_local(value: str) -> bool:
    """Whether it begins as a path does, ends as a file of data does, or is deeper than ``"user/name"``."""
    begins, ends = value.startswith((".", "/", "~")), Path(value).suffix.lower() in DATA_ENDINGS
    return begins or ends or value.count("/") > 1 or "\\" in value
