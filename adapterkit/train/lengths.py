"""Texts that are longer than what a model is given of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow.compute as pc

from adapterkit.train.pipeline import Encoded, Pipeline


def told(pipeline: Pipeline, splits: Iterable[Encoded]) -> Iterator[str]:
    """A line for each key of ``data`` that cuts texts off: how many rows are as long as it lets them be."""
    full, rows = Counter[str](), Counter[str]()
    for split in splits:
        for column, key in pipeline.cut(split.examples).items():
            lengths = pc.list_value_length(split.rows.with_format("arrow")[:][column])
            full[key] += pc.sum(pc.greater_equal(lengths, room(pipeline, key))).as_py() or 0
            rows[key] += len(lengths)
    for key, count in full.items():
        if count:
            many, kept = f"{count:,} of {rows[key]:,} texts", room(pipeline, key)
            yield f"data.{key}: {many} have all of the {kept} tokens that are kept; longer ones are cut off"


def room(pipeline: Pipeline, key: str) -> int:
    """How many tokens are kept: fewer than a key says, where the model has no place for so many."""
    return pipeline.max_length if key == "max_length" else int(getattr(pipeline.config, key))
