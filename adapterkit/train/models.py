"""Base models and tokenizers: built in, from a directory, or from the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapterkit.config.choices import BUILTIN_PREFIX
from adapterkit.config.run import ModelConfig
from adapterkit.config.task import TaskConfig
from adapterkit.errors import ConfigError, first_line
from adapterkit.train import tiny
from adapterkit.train.tokenizers import builtin_tokenizer

logger = logging.getLogger("adapterkit")

_FEWEST = 3  # tokens beside special ones; without files some classes still know a blank or a marker


def model_name(config: ModelConfig, task: TaskConfig) -> str:
    """What is loaded: the name that was given, or the task's built-in model."""
    return config.name_or_path or task.default_model


def load_base(
    config: ModelConfig, task: TaskConfig, *, device: str | torch.device | None = None, **options: Any
) -> PreTrainedModel:
    """The base model for a task, with its head if the task has one, in evaluation mode.

    Args:
        config: which model, in which type.
        task: names the class in transformers that loads it.
        device: where to put it; ``"meta"`` builds the model without weights and reads nothing but its configuration;
            None leaves it where transformers puts it.
        options: passed to the model's configuration: ``num_labels``, ``id2label``, ``problem_type``, ...

    Raises:
        ConfigError: the model is not there, or cannot be loaded as this task needs it.
    """
    name = model_name(config, task)
    auto = _auto_class(task)
    family = tiny.family_of(name)
    with _explained(name, task):
        if family is not None:
            return _built_in(auto, family, config, device=device, options=options)
        if device is not None and torch.device(device).type == "meta":
            found = AutoConfig.from_pretrained(name, **_source(config), **options)
            return _on_meta(auto, found, config)
        with silence():
            loaded = auto.from_pretrained(
                name,
                **_source(config),
                **_loading(config),
                **options,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        model, report = loaded
        _say_what_is_made_anew(model, task, report["mismatched_keys"])
        _say_what_is_new(model, report["missing_keys"])
        return _prepared(model, config, device)


@contextmanager
def silence() -> Iterator[None]:
    """transformers' own table of what a checkpoint lacks is replaced by a line of ours."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


def _say_what_is_new(model: PreTrainedModel, missing: Iterable[str]) -> None:
    """A head that the checkpoint lacks is as it should be; any other part would stay random, and frozen."""
    inside = f"{model.base_model_prefix}."
    new = sorted(missing)
    if any(name.startswith(inside) for name in new) or (new and model.base_model is model):
        logger.warning("%s has no weights for %s: random and frozen", model.name_or_path, ", ".join(new))
    elif new:
        logger.info("newly made: %s", ", ".join(new))


def _say_what_is_made_anew(
    model: PreTrainedModel, task: TaskConfig, mismatched: Iterable[tuple[str, Any, Any]]
) -> None:
    """A head of another size, for other classes, is made anew, since it is trained; no other part may be."""
    heads = set(task.wrapper_class().heads)
    for name, saved, wanted in sorted(mismatched):
        sizes = f"{name} has the shape {tuple(saved)} in {model.name_or_path}, and {tuple(wanted)} here"
        if heads.isdisjoint(name.split(".")):
            raise ConfigError(f"model.name_or_path={model.name_or_path} cannot be loaded: {sizes}")
        logger.warning("%s: made anew", sizes)


def load_tokenizer(config: ModelConfig, task: TaskConfig, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model; one without a padding token pads with its end-of-text token.

    Args:
        config: which model.
        task: names the built-in model that stands for none.
        options: passed to the tokenizer, unless it is built in.

    Raises:
        ConfigError: there is none.
    """
    name = config.tokenizer or model_name(config, task)
    family = tiny.family_of(name)
    if family is not None:
        return builtin_tokenizer(family)
    source = _source(config)
    if config.tokenizer:
        source = {"trust_remote_code": config.trust_remote_code}
    with _explained(name, task, key="tokenizer" if config.tokenizer else "name_or_path"):
        tokenizer = whole_tokenizer(name, **source, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def whole_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, or of a repository on the Hub.

    Raises:
        ConfigError: transformers finds no files of a tokenizer; for some models it makes one that knows no word.
    """
    missing = (
        f"{name} has no tokenizer, or one without a vocabulary: set model.tokenizer to the one it was trained with"
    )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    except ValueError as error:
        if "instantiate the backend tokenizer" in str(error):
            raise ConfigError(missing) from error
        raise
    if len(tokenizer) - len(tokenizer.all_special_ids) < _FEWEST:
        raise ConfigError(missing)
    return tokenizer


def use_padding_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a model which token its inputs are padded with: it may know of none, or of another.

    A decoder that classifies texts finds the last token of each by it.
    """
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _auto_class(task: TaskConfig) -> Any:
    try:
        return getattr(transformers, task.auto_model)
    except AttributeError:
        raise ConfigError(f"task {task.name}: transformers has no class {task.auto_model}") from None


def _source(config: ModelConfig) -> dict[str, Any]:
    """Where from_pretrained looks."""
    found: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision and config.name_or_path and Path(config.name_or_path).expanduser().is_dir():
        where = f"{config.name_or_path} is a directory, and has no revisions"
        raise ConfigError(f"model.revision={config.revision} would do nothing: {where}")
    if config.revision:
        found["revision"] = config.revision
    if config.subfolder:
        found["subfolder"] = config.subfolder
    return found


def _loading(config: ModelConfig) -> dict[str, Any]:
    """How from_pretrained loads the weights."""
    options: dict[str, Any] = {"dtype": config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)}
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if _is_quantised(config):
        options["quantization_config"] = _quantisation(config)
    return options


def _is_quantised(config: ModelConfig) -> bool:
    return config.load_in_4bit or config.load_in_8bit


def _quantisation(config: ModelConfig) -> Any:
    if not transformers.utils.is_bitsandbytes_available():
        raise ConfigError("model.load_in_4bit and load_in_8bit need bitsandbytes: pip install bitsandbytes")
    compute = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    return transformers.BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _built_in(
    auto: Any, family: str, config: ModelConfig, *, device: str | torch.device | None, options: dict[str, Any]
) -> PreTrainedModel:
    tokenizer = builtin_tokenizer(family)
    made = tiny.tiny_config(family, tokenizer, **options)
    if device is not None and torch.device(device).type == "meta":
        return _on_meta(auto, made, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tiny.SEED)
        model = auto.from_config(made, **_attention(config))
    tiny.fill(model, tokenizer)
    model.name_or_path = f"{BUILTIN_PREFIX}{family}"
    if config.dtype != "auto":
        model = model.to(getattr(torch, config.dtype))
    return _prepared(model, config, device)


def _on_meta(auto: Any, found: PretrainedConfig, config: ModelConfig) -> PreTrainedModel:
    options = _attention(config) | ({"trust_remote_code": True} if config.trust_remote_code else {})
    if config.dtype != "auto":
        options["dtype"] = getattr(torch, config.dtype)
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(found, **options)
    return model.eval()


def _attention(config: ModelConfig) -> dict[str, Any]:
    return {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}


def _prepared(model: PreTrainedModel, config: ModelConfig, device: str | torch.device | None) -> PreTrainedModel:
    if _is_quantised(config):
        from adapterkit.kbit import prepare_model_for_kbit_training

        prepared: PreTrainedModel = prepare_model_for_kbit_training(model)
        return prepared
    return (model if device is None else model.to(device)).eval()


@contextmanager
def _explained(name: str, task: TaskConfig, *, key: str = "name_or_path") -> Iterator[None]:
    """Turns what transformers raises for a model that is not there into one sentence."""
    if _looks_local(name) and not Path(name).expanduser().exists():
        raise ConfigError(f"model.{key}={name}: no such directory (from {Path.cwd()})")
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, ImportError) as error:  # the last: kernels of attn_implementation, modules of its code
        raise ConfigError(f"model.{key}={name} cannot be loaded for task {task.name}: {first_line(error)}") from error


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1
