"""`PeftModel`: a base model and its named adapters, as one module with PEFT's public surface.

Four facts are kept apart for every adapter: loaded (it is in `peft_config`), active (the next forward uses it),
trainable (its parameters receive gradients) and merged (its change is in the base's weights). A call changes the one
it is named after.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from adapterkit.blame import name_adapter
from adapterkit.calls import kept_looked_at, prepare
from adapterkit.config.base import PeftConfig, check_is_config
from adapterkit.config.prompt import PromptConfig
from adapterkit.config.strict import Named
from adapterkit.errors import CapabilityError, StateError
from adapterkit.given import check_name, names_of
from adapterkit.injection.making import with_heads
from adapterkit.injection.operations import Operations
from adapterkit.injection.tuner import Tuner
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.registry import tasks
from adapterkit.saved import Saved


class PeftModel(Operations, Saved):
    """A base model with adapters. ``base_model`` is the tuner, ``base_model.model`` the model itself, changed in place.

    Args:
        model: the base model.
        peft_config: the first adapter's config.
        adapter_name: its name.
        autocast_adapter_dtype: keep adapters in float32 where the base is in a half type.
        low_cpu_mem_usage: make the adapter on the meta device, to be filled by loading.
    """

    task_type: ClassVar[str | None] = None

    fill: ClassVar[Mapping[str, int]] = {"attention_mask": 1, "token_type_ids": 0}
    """With what value each keyword input grows when virtual tokens are put before it."""

    halves: ClassVar[int] = 1
    """2 for an encoder-decoder model, each half of which may have virtual tokens of its own."""

    shifted: ClassVar[tuple[str, ...]] = ()
    """Keyword inputs that count columns, and move when virtual tokens are put before them."""

    trimmed: ClassVar[tuple[str, ...]] = ()
    """Outputs with a column for every input's, whose columns of virtual tokens are left out."""

    pooled_by: ClassVar[Mapping[str, str]] = {}
    """Modules that make one vector of one column of every row, and which it is: the ``first``, or the ``last``."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        super().__init__()
        self.base_model = Tuner(model)
        self.prompt_encoder = nn.ModuleDict()  # adapter name -> prompt adapter
        self.add_adapter(adapter_name, peft_config, low_cpu_mem_usage, autocast_adapter_dtype)
        self.base_model.activate((adapter_name,))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_model", "prompt_encoder"):
                raise
            return getattr(self.base_model, name)

    @property
    @override
    def _tuner(self) -> Tuner:
        return self.base_model

    @classmethod
    @override
    def _wrapper(cls, config: PeftConfig) -> type[PeftModel]:
        return wrapper_for(config) if cls is PeftModel else cls

    # -- adapters -----------------------------------------------------------------------------------------------------

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Make a further adapter. It is neither activated nor trained before `set_adapter`, and no other changes.

        Raises:
            StateError: the name is taken, or the method differs from the others' (see `PeftMixedModel`).
            TargetError: a stated module name matches nothing.
        """
        check_name(adapter_name)
        check_is_config(peft_config)
        self._check_method(peft_config)
        config = self._with_heads(peft_config)
        options = {"low_cpu_mem_usage": low_cpu_mem_usage, "autocast_adapter_dtype": autocast_adapter_dtype}
        prompt, is_first = None, not self.peft_config
        if config.is_prompt_learning:
            config, prompt = self._make_prompt(config, adapter_name, empty=low_cpu_mem_usage)
        config = self.base_model.add(adapter_name, config, trainable=is_first, **options)
        if prompt is not None:
            self.prompt_encoder._modules[adapter_name] = prompt.requires_grad_(is_first and not config.inference_mode)
        self._warn_of_heads(adapter_name, config)

    def _check_method(self, config: PeftConfig) -> None:
        others = {other.peft_type for other in self.peft_config.values()}
        if others and config.peft_type not in others:
            raise StateError(
                f"this model has {', '.join(others)} adapters and cannot take a {config.peft_type} one; "
                "make it with get_peft_model(..., mixed=True) to mix methods"
            )

    def _with_heads(self, config: PeftConfig) -> PeftConfig:
        """The config as it is for this task."""
        config = with_heads(config, self.base_model.names, self.heads)
        if config.task_type is not None or self.task_type is None:
            return config
        return config.model_copy(update={"task_type": Named(self.task_type)})

    def _warn_of_heads(self, adapter_name: str, config: PeftConfig) -> None:
        """Say which output layers the config's task would have trained, and this model does not."""
        wrapper = wrapper_for(config)
        if config.inference_mode or isinstance(self, wrapper):
            return
        asked = with_heads(config, self.base_model.names, wrapper.heads).modules_to_save or ()
        adapted = {target.rpartition(".")[2] for target in self.base_model.adapted_by(adapter_name)}
        for head in sorted({*asked} - {*(config.modules_to_save or ())} - adapted):
            warnings.warn(
                f"task_type={config.task_type!r}: a {type(self).__name__} does not train its output layer {head!r} by "
                "itself; name it in modules_to_save",
                UserWarning,
                stacklevel=4,
            )

    def _make_prompt(self, config: PeftConfig, name: str, *, empty: bool) -> tuple[PeftConfig, PromptAdapter]:
        from adapterkit.prompts.making import make_prompt
        from adapterkit.prompts.sizes import with_sizes

        if not isinstance(config, PromptConfig):
            raise CapabilityError(f"{config.peft_type} is no prompt method")
        config = with_sizes(config, self.get_base_model(), self.task_type)
        return config, make_prompt(config, self.get_base_model(), name, empty=empty)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Whether adapters receive gradients; which ones are active does not change."""
        names = names_of(adapter_names, "adapter_names")
        super().set_requires_grad(names, requires_grad)
        for name in names:
            if name in self.prompt_encoder:
                self.prompt_encoder[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was active, none takes its place.

        Raises:
            StateError: unknown, or merged.
        """
        super().delete_adapter(adapter_name)
        if adapter_name in self.prompt_encoder:
            del self.prompt_encoder[adapter_name]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the block the model is the base model, merged or not."""
        selection = self.base_model.selection
        before, selection.enabled = selection.enabled, False
        try:
            yield
        finally:
            selection.enabled = before

    # -- computing ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's forward with the active adapters.

        Args:
            args: as for the base model.
            adapter_names: one adapter for every row of the batch; ``"__base__"`` for none.
            kwargs: as for the base model.

        Raises:
            StateError: a name in ``adapter_names`` is unknown, or their number is not the number of rows.
        """
        prepare(self.base_model, adapter_names, args, kwargs)
        try:
            # torch.jit.trace cannot save functions that have a backward of their own
            with torch.no_grad() if torch._C._get_tracing_state() else nullcontext():
                outputs = self._call(args, kwargs)
        except BaseException as error:
            name_adapter(error, self.base_model, self.prompt_encoder)
            self.base_model.selection.forget()
            raise
        self.base_model.selection.leave(outputs)
        return outputs

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prompt = self._active_prompt()
        with kept_looked_at(self.base_model):
            if prompt is not None:
                return self._prompts().call_with_prompt(self, prompt, args, kwargs)
            outputs = self.base_model(*args, **kwargs)
        return self.base_model.schedules.add_loss(outputs) if self.training else outputs

    def _active_prompt(self) -> PromptAdapter | None:
        selection = self.base_model.selection
        if not selection.enabled or not len(self.prompt_encoder):
            return None
        names = selection.active if selection.routes is None else selection.routes.rows
        return next((self.prompt_encoder[n] for n in names if n in self.prompt_encoder), None)  # type: ignore

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's ``generate`` with the active adapters; ``adapter_names`` as for `forward`."""
        prepare(self.base_model, adapter_names, args, kwargs)
        prompt = self._active_prompt()
        try:
            if prompt is None:
                return self.get_base_model().generate(*args, **kwargs)  # type: ignore[operator]
            return self._prompts().generate_with_prompt(self, prompt, args, kwargs)
        except Exception as error:
            name_adapter(error, self.base_model, self.prompt_encoder)
            raise
        finally:
            self.base_model.selection.forget()

    def unload(self) -> nn.Module:
        """The plain base model, without the adapters."""
        return self.base_model.unload()


def wrapper_for(config: PeftConfig) -> type[PeftModel]:
    """The wrapper of a config's task; `PeftModel` itself where it has none."""
    if config.task_type is None:
        return PeftModel
    return tasks[config.task_type.lower()].wrapper_class()  # type: ignore[no-any-return]
