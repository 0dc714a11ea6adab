"""``estimate``: what would be trained, counted on a model without weights."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from adapterkit.cli.listing import columns
from adapterkit.cli.options import Options, size
from adapterkit.config.trainer import TrainerConfig
from adapterkit.errors import EXIT_OK, ConfigError
from adapterkit.ondisk.names import with_open_numbers
from adapterkit.registry import tasks

if TYPE_CHECKING:
    from adapterkit.config.base import PeftConfig
    from adapterkit.model import PeftModel

PRESETS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Flags that say where presets are, which go with overrides."""

ADAMW_BYTES = 12
"""Bytes for a trainable parameter during training: a gradient and AdamW's two moments, in float32."""


@dataclass(frozen=True)
class Row:
    """Adapted modules of one name and one size."""

    name: str
    """The module's name with its numbers left open, ``"bert.encoder.layer.*.attention.self.query"``."""
    layer: str
    count: int
    parameters: int
    """Trainable ones, of all ``count`` together."""


@dataclass(frozen=True)
class Estimate:
    """An adapter in numbers."""

    method: str
    rows: list[Row]
    trainable_parameters: int
    all_parameters: int
    adapter_bytes: int
    """Of the tensors that would be saved."""
    base_bytes: int
    """Of the base model's weights, in the types they are held in."""

    @property
    def training_bytes(self) -> int:
        """Base, adapter, gradients and AdamW's moments; without activations."""
        return self.base_bytes + self.adapter_bytes + ADAMW_BYTES * self.trainable_parameters


def estimate(arguments: Sequence[str]) -> int:
    """``estimate +method=lora task=seq_cls ...``, or ``estimate --config adapter_config.json --model config.json``.

    Raises:
        ConfigError: a flag is unknown or alone, a file cannot be read, or what it says cannot be honoured.
    """
    options = Options(
        "estimate",
        "+method=<name> task=<name> [key=value ...] [--json]\n"
        "--config FILE --model FILE [--task NAME] [trainer.key=value ...] [--json]",
        "Targets, exact parameter counts and bytes, on a model without weights.",
    )
    options.add_argument("--config", type=Path, metavar="FILE", help="a PEFT adapter_config.json, instead of overrides")
    options.add_argument("--model", type=Path, metavar="FILE", help="the config.json of a transformers model")
    options.add_argument("--task", metavar="NAME", help="the task, where the adapter's config has none (causal_lm)")
    options.add_argument("--json", action="store_true", help="print the numbers as JSON")
    given, overrides = options.read_beside_words(arguments, others=PRESETS)
    if (given.config is None) != (given.model is None):
        raise ConfigError("estimate takes --config and --model together, or overrides")
    if given.config is None:
        found = _from_overrides(overrides)
    else:
        trainer = _trainer(overrides)
        found = count(_read(given.config), _read(given.model), task=given.task, trainer=trainer)
    print(json.dumps(asdict(found), indent=2) if given.json else text(found))
    return EXIT_OK


def _trainer(overrides: Sequence[str]) -> TrainerConfig:
    """What ``trainer.key=value`` says beside two files: a method's own optimizer may freeze tensors."""
    others = [override for override in overrides if not override.startswith("trainer.")]
    if others:
        raise ConfigError(f"estimate takes overrides or --config and --model, not both: {' '.join(others)}")
    pairs = (override.removeprefix("trainer.").partition("=") for override in overrides)
    try:
        return TrainerConfig.model_validate_strings({key: value for key, _, value in pairs})
    except ValidationError as error:
        raise ConfigError(f"{' '.join(overrides)}: {error.errors(include_url=False)[0]['msg']}") from error


def _from_overrides(overrides: Sequence[str]) -> Estimate:
    from adapterkit.cli.validate import checked, composed
    from adapterkit.hydra.arguments import parse
    from adapterkit.hydra.diagnosis import composer_for

    arguments = parse(overrides)
    composer = composer_for(arguments)
    run = checked(composed(arguments, composer), composer)
    from adapterkit.train.models import load_base  # only now: a mistake costs no import of torch

    base = load_base(run.model, run.task, device="meta")
    return measure(base, run.method.model_copy(update={"task_type": run.task.task_type}), run.trainer)


def count(
    config: dict[str, Any], model: dict[str, Any], *, task: str | None = None, trainer: TrainerConfig | None = None
) -> Estimate:
    """The numbers of an adapter on a model, both as their files describe them.

    Args:
        config: the content of a PEFT ``adapter_config.json``.
        model: the content of a transformers ``config.json``.
        task: name of a task; by default that of ``config``, else ``causal_lm``.
        trainer: a run's settings, as an optimizer of the method's own may leave tensors as they are.

    Raises:
        ConfigError: a file says something that cannot be honoured.
    """
    import torch
    import transformers

    from adapterkit.config.base import PeftConfig

    parsed: PeftConfig = PeftConfig.from_dict(config)
    chosen = tasks[task or (parsed.task_type or "causal_lm").lower()]
    try:
        model_config = transformers.AutoConfig.for_model(**model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"this is no configuration of a transformers model: {error}") from error
    with torch.device("meta"):
        base = getattr(transformers, chosen.auto_model).from_config(model_config)
    return measure(base, parsed.model_copy(update={"task_type": chosen.task_type}), trainer)


def measure(base: Any, config: PeftConfig, trainer: TrainerConfig | None = None) -> Estimate:
    """Put the adapter on a base model, which is changed, and count.

    Raises:
        TargetError: a stated module name matches nothing.
    """
    from adapterkit.build import get_peft_model
    from adapterkit.checkpoint.state import adapter_state
    from adapterkit.optimizers import chosen, made

    base_bytes = sum(tensor.numel() * tensor.element_size() for tensor in base.parameters())
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    option = chosen(trainer) if trainer is not None else None
    if trainer is not None and option is not None:
        made(model, option, trainer)  # which freezes what it does not train
    trainable, total = model.get_nb_trainable_parameters()
    saved = adapter_state(model, "default").values()
    adapter_bytes = sum(tensor.numel() * tensor.element_size() for tensor in saved)
    return Estimate(config.peft_type, _rows(model), trainable, total, adapter_bytes, base_bytes)


def _rows(model: PeftModel) -> list[Row]:
    counts: dict[tuple[str, str], list[int]] = defaultdict(list)
    prompts = (("(inputs)", prompt) for prompt in model.prompt_encoder.values())
    for name, part in [*model.base_model.parts("default"), *prompts]:
        parameters = sum(p.numel() for p in part.parameters() if p.requires_grad)
        counts[with_open_numbers(name), _layer(part)].append(parameters)
    return [Row(name, layer, len(found), sum(found)) for (name, layer), found in counts.items()]


def _layer(part: Any) -> str:
    view = getattr(part, "layer", None)
    return f"{view.kind} {view.in_features} x {view.out_features}" if view is not None else type(part).__name__


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def text(found: Estimate) -> str:
    """The numbers for reading."""
    rows = [(row.name, row.layer, str(row.count), f"{row.parameters:,}") for row in found.rows]
    share = found.trainable_parameters / found.all_parameters
    return "\n".join(
        [
            columns([("target", "layer", "number", "trainable"), *rows]),
            "",
            f"trainable parameters  {found.trainable_parameters:,} ({share:.4%})",
            f"all parameters        {found.all_parameters:,}",
            f"adapter file          {size(found.adapter_bytes)}",
            f"base weights          {size(found.base_bytes)}",
            f"training with AdamW   {size(found.training_bytes)}, without activations",
        ]
    )
