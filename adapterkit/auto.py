"""A saved adapter and the base model it names, loaded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn

from adapterkit.config.base import PeftConfig, check_is_config
from adapterkit.errors import CapabilityError, CheckpointError
from adapterkit.files import fetch, hub_options
from adapterkit.given import check_name, check_path
from adapterkit.model import PeftModel, wrapper_for
from adapterkit.registry import tasks

TRUSTED = ("transformers", "diffusers", "sentence_transformers", "timm", "torchvision", "torch")
"""The packages from which a base model's class is imported without being asked for."""

_FOR_ADAPTER = frozenset({"subfolder", "allow_unknown", "key_mapping", "ignore_mismatched_sizes", "strict"})
_FOR_BOTH = frozenset({"token", "use_auth_token", "cache_dir", "local_files_only", "force_download"})


class AutoPeftModel:
    """Loads a base model by the class that a saved adapter's config names, and the adapter onto it."""

    task: ClassVar[str | None] = None
    """Name of the only task that is loaded; None takes any."""

    def __init__(self) -> None:
        raise CapabilityError(
            f"{type(self).__name__} makes nothing itself: use {type(self).__name__}.from_pretrained(...)"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: Sequence[str] | None = None,
        **options: Any,
    ) -> PeftModel:
        """The base model that a saved adapter names, with the adapter. Where a longer tokenizer lies beside the
        adapter, the embeddings grow to its length first.

        Args:
            pretrained_model_name_or_path: directory, or repository on the Hub.
            adapter_name: what to call the adapter.
            is_trainable: whether it receives gradients.
            config: taken instead of the file's.
            revision: revision of the adapter; the base's is in the config.
            import_allowlist: packages that the base's class may come from; None takes `TRUSTED`.
            options: ``subfolder``, ``allow_unknown``, ... for the adapter; ``token``, ``cache_dir``, ... for both;
                all others for the base model's ``from_pretrained``.

        Raises:
            CheckpointError: the adapter is for another task, or does not say what its base is.
        """
        check_path(pretrained_model_name_or_path, "pretrained_model_name_or_path")
        if config is not None:
            check_is_config(config, "config")
        check_name(adapter_name)
        ours = {key: options.pop(key) for key in _FOR_ADAPTER & options.keys()}
        both = {key: options[key] for key in _FOR_BOTH & options.keys()}
        hub = hub_options({**ours, **both, "revision": revision})
        if config is None:
            allowed = ours.get("allow_unknown", ())
            config = PeftConfig.from_pretrained(pretrained_model_name_or_path, allow_unknown=allowed, **hub)
        cls._check(config, pretrained_model_name_or_path)
        loader = base_class(config, TRUSTED if import_allowlist is None else import_allowlist)
        base = loader.from_pretrained(config.base_model_name_or_path, revision=config.revision, **options)
        grow_embeddings(base, pretrained_model_name_or_path, hub, options.get("trust_remote_code", False))
        reading = {**ours, **both, "revision": revision}
        return wrapper_for(config).from_pretrained(
            base, pretrained_model_name_or_path, adapter_name, is_trainable, config, **reading
        )

    @classmethod
    def _check(cls, config: PeftConfig, source: str | Path) -> None:
        wanted = tasks[cls.task].task_type if cls.task else None
        if wanted and config.task_type != wanted:
            raise CheckpointError(f"{source}: this is an adapter for {config.task_type}, not for {wanted}")
        if not config.base_model_name_or_path:
            raise CheckpointError(
                f"{source}: base_model_name_or_path is empty: load the base, then PeftModel.from_pretrained"
            )


def base_class(config: PeftConfig, trusted: Sequence[str]) -> Any:
    """The class with which to load the base model: the task's auto class, else the one that the config names.

    Raises:
        CheckpointError: the config names none, or one of a package that is not trusted.
    """
    if config.task_type is not None:
        return getattr(import_module("transformers"), tasks[config.task_type.lower()].auto_model)
    mapping: Mapping[str, Any] = config.auto_mapping or {}
    library, name = mapping.get("parent_library"), mapping.get("base_model_class")
    if not library or not name:
        raise CheckpointError("the config has neither a task_type nor the class of its base model (auto_mapping)")
    if library.partition(".")[0] not in trusted:
        raise CheckpointError(
            f"the adapter's base is a {name} from {library!r}, which is not imported unasked; "
            f"if it is safe, pass import_allowlist=[{library.partition('.')[0]!r}]"
        )
    return getattr(import_module(library), name)


def grow_embeddings(
    base: nn.Module, source: str | Path, hub: Mapping[str, Any], trust_remote_code: bool = False
) -> None:
    """Make a base model's embeddings as long as the tokenizer beside an adapter, if there is one and it is longer."""
    try:
        there = fetch(source, "tokenizer_config.json", **hub).is_file()
    except CheckpointError:
        there = False
    if not there or not hasattr(base, "resize_token_embeddings"):
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code, **hub)
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:  # type: ignore[operator]
        base.resize_token_embeddings(len(tokenizer))  # type: ignore[operator]


@final
class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """`AutoPeftModel` for adapters of this task only."""

    task: ClassVar[str | None] = "seq_cls"


@final
class AutoPeftModelForTokenClassification(AutoPeftModel):
    """`AutoPeftModel` for adapters of this task only."""

    task: ClassVar[str | None] = "token_cls"


@final
class AutoPeftModelForCausalLM(AutoPeftModel):
    """`AutoPeftModel` for adapters of this task only."""

    task: ClassVar[str | None] = "causal_lm"


@final
class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """`AutoPeftModel` for adapters of this task only."""

    task: ClassVar[str | None] = "seq_2_seq_lm"


@final
class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """`AutoPeftModel` for adapters of this task only."""

    task: ClassVar[str | None] = "question_ans"


@final
class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """`AutoPeftModel` for adapters of this task only."""

    task: ClassVar[str | None] = "feature_extraction"
