"""Parts of a split: the share that is held out for validation, and subsets."""

from __future__ import annotations

import random

from datasets import Dataset

from adapterkit.train.columns import Roles

SPLIT_SEED = 0
"""Seed of the held-out share and of subsets: the same for every seed of a run, so that runs compare."""


def held_out(train: Dataset, roles: Roles, *, fraction: float, ordered: bool) -> list[int]:
    """Indices to hold out: the end of a text; else a share of each class, or of all groups, drawn by chance."""
    if ordered:
        return list(range(len(train) - max(1, round(len(train) * fraction)), len(train)))
    rng, members = random.Random(SPLIT_SEED), _members(train, roles)
    if roles.group_by:
        groups = list(members)
        rng.shuffle(groups)
        chosen = groups[: max(1, round(len(groups) * fraction))]
        return sorted(index for group in chosen for index in group)
    found = sorted(i for group in members for i in rng.sample(group, round(len(group) * fraction)))
    spare = [i for group in members for i in rng.sample(group, len(group) - 1)]  # one of each class stays
    return found or sorted(rng.sample(spare, min(len(spare), round(len(train) * fraction))))


def _members(train: Dataset, roles: Roles) -> list[list[int]]:
    """The indices that belong together, or to one class; values that hardly repeat (numbers) make no classes."""
    column = roles.group_by or roles.stratify_by
    keys = [str(value) for value in train[column][:]] if column in train.column_names else [""] * len(train)
    if roles.group_by is None and len(set(keys)) * 2 > len(keys):
        keys = [""] * len(train)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    return list(members.values())


def subset(split: Dataset, limit: int | None, ordered: bool) -> Dataset:
    """At most ``limit`` examples of a split: the first ones of a text, else some drawn by chance."""
    if limit is None or limit >= len(split):
        return split
    chosen = range(limit) if ordered else sorted(random.Random(SPLIT_SEED).sample(range(len(split)), limit))
    return split.select(chosen)
