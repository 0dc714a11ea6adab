"""An adapter merged into its base and written as a plain model of transformers, which is proved to compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapterkit.errors import CapabilityError, CheckFailedError
from adapterkit.files import appearing
from adapterkit.nn.storage import is_linear, is_quantised, make_dense
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.train.found import Found
from adapterkit.train.models import silence
from adapterkit.train.probes import Distance, distance, outputs_of, probe
from adapterkit.train.standalone import load

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far the outputs may be apart, relative to the largest of them: some roundings of the type in every layer. Where
the base is quantised, what counts is how coarse its own kernels are: as far as in bfloat16."""


@dataclass(frozen=True)
class Merged:
    """A merged model that was written."""

    directory: Path
    base: str
    dtype: str
    """Type of the weights that are written."""
    layers: int
    """How many layers have another weight."""
    distance: Distance
    """Between the outputs of the adapted model and of the files, for one batch."""
    tolerance: float
    """What was allowed of `Distance.relative`."""
    has_tokenizer: bool


def refuse_unmergeable(found: Found) -> None:
    """
    Raises:
        CapabilityError: no weights express what the method does.
    """
    config = found.files.config
    why = ""
    if config.is_prompt_learning:
        why = "no weight expresses a prompt"
    elif not config.adapter_class().mergeable:
        why = "its change is not affine in a layer's input, or depends on the row"
    if why:
        raise CapabilityError(f"{found.files.directory}: {config.peft_type} cannot be merged: {why}")


def merge(
    found: Found, to: Path, *, base: str | None = None, dtype: str | None = None, tolerance: float | None = None
) -> Merged:
    """Merge an adapter, write the model, read it back and compare it with the adapter.

    Args:
        found: the adapter.
        to: where to; nothing may be there.
        base: as for `adapterkit.train.standalone.load`.
        dtype: type of the weights that are written; None keeps the base's. Merging in a wider type comes first.
        tolerance: how far outputs may be apart, relative to the largest one; None goes by the type (`TOLERANCES`).

    Raises:
        ConfigError: the base cannot be loaded, or something is under ``to`` already.
        CapabilityError: the method, or an adapter in a layer, cannot be merged.
        CheckFailedError: what was written computes something else; it is removed.
    """
    refuse_unmergeable(found)
    model, tokenizer = load(found, base)
    bare: PreTrainedModel = model.get_base_model()
    name, batch = bare.name_or_path, probe(bare)
    quantised = any(is_linear(module) and is_quantised(module) for module in bare.modules())
    if dtype == "float32":
        model.float()
    before, layers = outputs_of(model, batch), len(model.targeted_module_names)
    merged = _merged(model, found.files, dtype)
    stored = str(merged.dtype).removeprefix("torch.")
    usual = TOLERANCES["bfloat16" if quantised or stored not in TOLERANCES else stored]
    allowed = usual if tolerance is None else tolerance
    with appearing(to) as temporary:
        for part in (merged, tokenizer):
            if part is not None:
                part.save_pretrained(temporary)
        again = _read_back(merged, temporary)
        apart = _proved(before, outputs_of(again, batch), allowed)
    return Merged(to, name, stored, layers, apart, allowed, tokenizer is not None)


def _merged(model: Any, files: AdapterFiles, dtype: str | None) -> PreTrainedModel:
    """The plain model, all of its weights unquantised."""
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except CapabilityError as error:
        raise CapabilityError(f"{files.directory}: {files.config.peft_type} cannot be merged here: {error}") from error
    make_dense(merged)  # layers that have no adapter
    if dtype is not None:
        merged = merged.to(getattr(torch, dtype))
    return merged.eval()


def _read_back(merged: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The model as its files say.

    Raises:
        CheckFailedError: the files have other weights than the model.
    """
    how = {"attn_implementation": merged.config._attn_implementation}
    with silence():
        again, report = type(merged).from_pretrained(directory, dtype="auto", output_loading_info=True, **how)
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names and kind.endswith("_keys")}
    if wrong:
        raise CheckFailedError(f"the written model cannot be read back whole: {wrong}")
    read: PreTrainedModel = again.to(merged.device).eval()
    return read


def _proved(before: Mapping[str, Tensor], after: Mapping[str, Tensor], allowed: float) -> Distance:
    apart = distance(before, after)
    if not apart.relative <= allowed:
        raise CheckFailedError(
            f"the merged model does not compute what the adapter does: outputs of up to {apart.size:.3g} differ by "
            f"{apart.largest:.3g}, and {allowed * apart.size:.1g} is allowed (--tolerance); nothing is written"
        )
    return apart
