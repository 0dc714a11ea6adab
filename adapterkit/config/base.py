"""What every method's config shares: its fields, and PEFT's ``adapter_config.json``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, ValidationError, field_serializer, model_validator

from adapterkit.config.strict import (
    Choice,
    Named,
    Names,
    Pattern,
    PositiveNumber,
    StrictModel,
    Text,
    plain_value,
    summarize,
)
from adapterkit.errors import ConfigError, UnknownPluginError, did_you_mean, of_choices
from adapterkit.given import DIRECTORY, check_mapping, check_path, misfit
from adapterkit.registry import implementation, methods, resolve, tasks

__all__ = ["Choice", "Names", "Pattern", "PeftConfig", "PositiveNumber", "StrictModel", "Text", "check_is_config"]
"""What a method's config is written with."""

CONFIG_NAME = "adapter_config.json"
PEFT_FORMAT = "0.21.2"
"""The PEFT release whose file format is written."""


Form = Mapping[str, Sequence[int | str]]
"""The tensors at one place of a saved adapter, by name, and their sizes: a number, or a word for a size that is
the same wherever it stands in the form. ``...`` stands for any further sizes."""


def _known_task_type(value: Any) -> Any:
    value = plain_value(value)
    if not isinstance(value, str):
        return value
    if value.lower() in tasks:
        return value.upper()
    choices = [name.upper() for name in tasks]
    raise ValueError(f"no task type {value!r}{of_choices(value, choices)}")


class PeftConfig(StrictModel):
    """The fields of every adapter method, in PEFT's spelling.

    A method subclasses it, fixes ``peft_type`` to a `Literal`, and names its implementation in `adapter`; the class
    is declared under the entry-point group ``adapterkit.methods`` by the name ``peft_type.lower()``.
    """

    adapter: ClassVar[str]
    """``"package.module:Class"`` of the adapter, imported only when an adapter is made."""

    schedule: ClassVar[str | None] = None
    """``"package.module:Class"`` of what steers the adapter while it is trained (`adapterkit.nn.schedule.Schedule`)."""

    forward_inputs: ClassVar[frozenset[str]] = frozenset()
    """Keyword inputs of the model's forward that adapters read, and the base model does not know."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that steer computation only, and are not written to ``adapter_config.json``."""

    start_fields: ClassVar[Mapping[str, Collection[Any] | None]] = {}
    """Fields that say how an adapter starts, and nothing of what it computes once it is loaded: with the values given,
    or with any (None)."""

    inert: ClassVar[Mapping[str, Any]] = {}
    """Keys of PEFT's files without a counterpart here, harmless at the value given."""

    optimizers: ClassVar[Mapping[str, str]] = {}
    """Options of ``trainer`` that choose an optimizer made for the method, and ``"package.module:function"`` of each:
    the function is given the model, class and settings of the usual optimizer, and ``trainer``."""

    learning_rate: ClassVar[float] = 2e-3
    """What a run takes that states none."""

    padding: ClassVar[str | None] = None
    """``"package.module:function"`` that gives adapters another rank, and a scale of 1, without changing what they
    compute, for swapping in compiled models: called with config, adapters by layer name, and rank; gives a config."""

    folding: ClassVar[str | None] = None
    """``"package.module:function"`` that makes of a saved adapter one that computes the same with none of the
    `folded_fields`, for other programs: called with config and tensors by key, it returns both anew."""

    folded_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields whose work `folding` puts into the tensors."""

    based_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields by whose value an adapter computes with the base's weights, so that only with these it becomes another
    kind of adapter."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Field values for a small example of the method, used by the contract and the documentation."""

    peft_type: str = Field(description="Name of the method, in capitals.")
    task_type: Annotated[str | None, BeforeValidator(_known_task_type)] = Field(
        None, description="What the model is for: SEQ_CLS, TOKEN_CLS, CAUSAL_LM, SEQ_2_SEQ_LM, QUESTION_ANS, ..."
    )
    base_model_name_or_path: str | None = Field(
        None, description="Where the base model comes from; null takes what it says."
    )
    revision: str | None = Field(None, description="Revision of the base model on the Hub.")
    inference_mode: bool = Field(False, description="Whether the adapter is frozen, for inference only.")
    auto_mapping: dict[str, Any] | None = Field(None, description="Class of a base model that has no task type.")
    peft_version: str | None = Field(None, description="Release of PEFT whose format the file has.")
    modules_to_save: Names | None = Field(
        None, description="Modules trained and saved whole beside the adapter, by name or name suffix: heads."
    )

    @model_validator(mode="after")
    def _what_is_set_does_something(self) -> Self:
        parts: list[StrictModel] = [
            self,
            *(value for value in self.__dict__.values() if isinstance(value, StrictModel)),
        ]
        fault = next((fault for part in parts if (fault := part.idle())), "")
        if fault and not self.inference_mode:  # files of adapters may say more than they mean
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _names_read_as_pefts(self) -> Self:
        for field in ("peft_type", "task_type"):
            value = self.__dict__[field]  # an assignment would validate again
            if value is not None:
                self.__dict__[field] = Named(value)
        return self

    @field_serializer("peft_type", "task_type")
    def _plain_name(self, value: str | None) -> str | None:
        return None if value is None else str(value)

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method adapts the whole model's inputs rather than layers."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """Whether the method is that of PEFT's `AdaptionPromptConfig`."""
        return False

    @property
    def trains_tokens(self) -> bool:
        """Whether single rows of an embedding are trained, which the file has then in place of the whole table."""
        return bool(getattr(self, "trainable_token_indices", None))

    @property
    def row_inputs(self) -> Mapping[str, int]:
        """The `forward_inputs` that are one integer for every row, and that training cannot do without: each with how
        many values it may have, from 0. A run takes them from columns of its data."""
        return {}

    @property
    def derived_inputs(self) -> str | None:
        """``"package.module:function"`` that makes inputs for the adapters from the model's own, or None.

        It is called before every forward and generate as ``function(config, input_ids, options)``, with the model's
        input, or None, and its keyword arguments. It returns tensors by name, each with an entry for every row; they
        take the place of keyword arguments of that name.
        """
        return None

    @property
    def data_init(self) -> str | None:
        """``"package.module:function"`` that starts an adapter from training data, or None where none are needed.

        It is called before training as ``function(model, adapter_name, batches, loss=loss)``; ``loss(model, batch)``
        is what is trained.
        """
        return None

    def adapter_class(self) -> Any:
        """The class that `adapter` names. Imports torch.

        Raises:
            BrokenPluginError: it cannot be imported, or is no adapter of this kind; names the plugin.
        """
        kind = "PromptAdapter" if self.is_prompt_learning else "LayerAdapter"
        return implementation(type(self), "adapter", resolve(f"adapterkit.nn.adapter:{kind}"))

    def at(self, module_name: str) -> Self:
        """This config as it holds for one module: patterns by module name are applied."""
        return self

    def saved_forms(self) -> Sequence[Form]:
        """What a file may have at one place of an adapter of this config (`at` the module, where it is a layer's): one
        form for each kind of place. Nothing is known of the tensors where there is none."""
        return ()

    def carries(self, field: str) -> bool:
        """Whether a field has a value by which an adapter computes otherwise than one that has no such field."""
        value, usual = getattr(self, field, None), self.start_fields.get(field, (None, False, "none", {}, []))
        return usual is not None and value not in usual

    def to_dict(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``, in JSON types."""
        return self.model_dump(mode="json", exclude=set(self.runtime_fields))

    def to_json(self, **changes: Any) -> str:
        """The content of ``adapter_config.json`` as PEFT writes it, with ``changes``. Keys are sorted, those of a value
        are not: of several patterns the first one counts."""
        content = {**self.to_dict(), "inference_mode": True, "peft_version": PEFT_FORMAT, **changes}
        return json.dumps(dict(sorted(content.items())), indent=2)

    def save_pretrained(
        self, save_directory: str | Path, auto_mapping_dict: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        """Write ``adapter_config.json`` into ``save_directory``; the file appears whole or not at all.

        It keeps this config's ``inference_mode``; beside an adapter's weights it is always true.

        Args:
            save_directory: where to; made if need be.
            auto_mapping_dict: class and library of a base model that has no task type.
            changes: keys to write with another value than this config's.
        """
        from adapterkit.files import write_text

        check_path(save_directory, "save_directory", DIRECTORY)
        if auto_mapping_dict is not None:
            changes["auto_mapping"] = auto_mapping_dict
        text = self.to_json(**{"inference_mode": self.inference_mode, **changes})
        write_text(Path(save_directory) / CONFIG_NAME, text)

    def push_to_hub(self, repo_id: str, *, token: str | bool | None = None, **options: Any) -> Any:
        """Upload ``adapter_config.json`` to a repository on the Hub, which is made if need be.

        Args:
            repo_id: ``"user/name"``.
            token: for the Hub; None takes the one that is stored.
            options: ``commit_message``, ``commit_description``, ``private``, ``revision`` and ``create_pr``, as for
                `PeftModel.push_to_hub`.

        Raises:
            CheckpointError: the Hub refuses, or cannot be reached.
        """
        message = {"commit_message": options.pop("commit_message", None) or "Upload config"}
        return resolve("adapterkit.hub.uploading:upload")(self.save_pretrained, repo_id, token, **message, **options)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, allow_unknown: Iterable[str] = (), source: str = "config") -> Self:
        """The config that ``data`` describes; its ``peft_type`` chooses the class.

        Unknown keys without a value (None, False, empty) are ignored: older and newer releases write them. Unknown
        keys that carry a value are refused unless ``allow_unknown`` names them.

        Raises:
            ConfigError: a key is unknown or a value is not valid; names them all, and ``source``.
        """
        check_mapping(data, source, "a mapping of fields")
        target = cls._class_for(data, source)
        allowed, content, refused = set(allow_unknown), {}, []
        for key, value in data.items():
            if key in target.model_fields:
                content[key] = value
            elif value and key not in allowed and target.inert.get(key) != value and key != "runtime_config":
                refused.append(f"{key}={value!r}{did_you_mean(key, target.model_fields)}")
        if refused:
            raise ConfigError(
                f"{source}: {target.__name__} does not know {'; '.join(refused)}. "
                "If the value may be ignored, name the key in allow_unknown"
            )
        try:
            return target.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"{source}: {summarize(error)}") from error

    @classmethod
    def from_peft_type(cls, **fields: Any) -> Self:
        """The config of these fields; ``peft_type`` among them chooses the class, as for `from_dict`."""
        return cls.from_dict(fields, source="from_peft_type")

    @classmethod
    def _class_for(cls, data: Mapping[str, Any], source: str) -> type[Self]:
        method = plain_value(data.get("peft_type"))
        if not isinstance(method, str):
            if cls is PeftConfig:
                raise ConfigError(f"{source}: peft_type is missing. Installed: {', '.join(m.upper() for m in methods)}")
            return cls
        try:
            found = methods[method.lower()]
        except UnknownPluginError as error:
            raise UnknownPluginError(f"{source}: {error}") from None
        if not issubclass(found, cls):
            raise ConfigError(f"{source}: this is a {method} config, not one for {cls.__name__}")
        return found

    @classmethod
    def from_json_file(cls, path: str | Path, **options: Any) -> Self:
        """Read one ``adapter_config.json``; options as for `from_dict`.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
        """
        from adapterkit.files import read_settings

        check_path(path, "path", "the path of a file")
        return cls.from_dict(read_settings(Path(path)), source=str(path), **options)

    @classmethod
    def from_pretrained(cls, model_id: str | Path, subfolder: str | None = None, **options: Any) -> Self:
        """Read the config of a saved adapter: a directory or a Hub id.

        Args:
            model_id: directory, or repository on the Hub.
            subfolder: folder inside ``model_id``.
            options: ``allow_unknown``; what `huggingface_hub.hf_hub_download` takes (``revision``, ``token``,
                ``cache_dir``, ``local_files_only``, ...); and fields of the config, which replace the file's.

        Raises:
            CheckpointError: there is no such file.
            ConfigError: it has an unknown key, or a value is not valid.
        """
        from adapterkit.files import HUB_OPTIONS, fetch, hub_options

        check_path(model_id, "model_id")
        allow_unknown = options.pop("allow_unknown", ())
        path = fetch(model_id, CONFIG_NAME, subfolder=subfolder, **hub_options(options))
        config = cls.from_json_file(path, allow_unknown=allow_unknown)
        changes = {key: value for key, value in options.items() if key not in {*HUB_OPTIONS, "use_auth_token"}}
        return config.changed(changes, source="from_pretrained") if changes else config

    def changed(self, changes: Mapping[str, Any], *, source: str) -> Self:
        """This config with other values for some fields, validated.

        Raises:
            ConfigError: a key is no field, or a value is not valid; names them, and ``source``.
        """
        unknown = [
            f"{key!r}{did_you_mean(key, type(self).model_fields)}"
            for key in changes
            if key not in type(self).model_fields
        ]
        if unknown:
            raise ConfigError(f"{source}: {type(self).__name__} has no {'; '.join(unknown)}")
        try:
            return type(self).model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError(f"{source}: {summarize(error)}") from error


def check_is_config(given: object, argument: str = "peft_config") -> None:
    """
    Raises:
        ArgumentError: this is no method's config of this package: PEFT's own class, a dictionary, a model, a class.
    """
    if not isinstance(given, PeftConfig):
        raise misfit(argument, given, "a config of adapterkit's: LoraConfig(...), or PeftConfig.from_dict(...),")
