"""What is said on the terminal while something goes on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from datasets.utils import logging as datasets_logging

logger = logging.getLogger("adapterkit")


@contextmanager
def logging_to(handler: logging.Handler, *, of: logging.Logger = logger) -> Iterator[None]:
    """Everything that adapterkit logs inside the block also goes to ``handler``; ``of`` the root, all else too."""
    level = logger.level
    of.addHandler(handler)
    logger.setLevel(min(logging.INFO, level or logging.INFO))
    try:
        yield
    finally:
        of.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def console(quiet: bool = False) -> Iterator[None]:
    """Inside the block our own lines go to the standard error, and other libraries' progress only to a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.ERROR if quiet else logging.INFO)
    if quiet or not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    datasets_logging.disable_progress_bar()
    try:
        with logging_to(handler):
            yield
    finally:
        transformers.utils.logging.enable_progress_bar()
        datasets_logging.enable_progress_bar()
