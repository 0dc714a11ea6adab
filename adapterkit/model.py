"""`PeftModel`: a base model and its named adapters, as one module with PEFT's public surface.

Four facts are kept apart for every adapter: loaded (it is in `peft_config`), active (the next forward uses it),
trainable (its parameters receive gradients) and merged (its change is in the base's weights). A call changes the one
it is named after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import nn
from typing_extensions import override

from adapterkit.calls import kept_looked_at, prepare
from adapterkit.config.base import PeftConfig
from adapterkit.config.prompt import PromptConfig
from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.nn.combination import Combination
from adapterkit.registry import resolve, tasks
from adapterkit.saved import Saved
from adapterkit.tuner import Tuner
from adapterkit.weighted import add_weighted, check_adapters


class PeftModel(Saved):
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
        self._check_method(peft_config)
        config = self._with_heads(peft_config)
        options = {"low_cpu_mem_usage": low_cpu_mem_usage, "autocast_adapter_dtype": autocast_adapter_dtype}
        prompt, is_first = None, not self.peft_config
        if config.is_prompt_learning:
            config, prompt = self._make_prompt(config, adapter_name, empty=low_cpu_mem_usage)
        config = self.base_model.add(adapter_name, config, trainable=is_first, **options)
        if prompt is not None:
            self.prompt_encoder._modules[adapter_name] = prompt.requires_grad_(is_first and not config.inference_mode)

    def _check_method(self, config: PeftConfig) -> None:
        others = {other.peft_type for other in self.peft_config.values()}
        if others and config.peft_type not in others:
            raise StateError(
                f"this model has {', '.join(others)} adapters and cannot take a {config.peft_type} one; "
                "make it with get_peft_model(..., mixed=True) to mix methods"
            )

    def _with_heads(self, config: PeftConfig) -> PeftConfig:
        """The config with the task's output layer among the modules to save: the one of `heads` that is there."""
        there = {name.rpartition(".")[2] for name in self.base_model.names}
        absent = {head for head in self.heads if head not in there}
        names = dict.fromkeys([*(config.modules_to_save or ()), *self.heads])
        saved = [name for name in names if name not in absent]
        return config.model_copy(
            update={"task_type": config.task_type or self.task_type, "modules_to_save": saved or None}
        )

    def _make_prompt(self, config: PeftConfig, name: str, *, empty: bool) -> tuple[PeftConfig, PromptAdapter]:
        prompts = self._prompts()
        if not isinstance(config, PromptConfig):
            raise CapabilityError(f"{config.peft_type} is no prompt method")
        config = prompts.with_sizes(config, self.get_base_model(), self.task_type)
        return config, prompts.make_prompt(config, self.get_base_model(), name, empty=empty)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use this adapter alone from now on, and train it; those that were active before are frozen.

        Args:
            adapter_name: which one; a list activates several, the first one innermost.
            inference_mode: leave it frozen.

        Raises:
            StateError: unknown name; lists the known ones.
        """
        wanted = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        before = self.active_adapters
        self.base_model.activate(wanted)
        self.set_requires_grad([name for name in before if name not in wanted], False)
        self.set_requires_grad(wanted, not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Whether adapters receive gradients; which ones are active does not change.

        Raises:
            StateError: a name is unknown; nothing is changed then.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.base_model.require(*names)
        for name in names:
            self.base_model.set_trainable(name, requires_grad)
            if name in self.prompt_encoder:
                self.prompt_encoder[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was active, none takes its place.

        Raises:
            StateError: unknown, or merged.
        """
        self.base_model.delete(adapter_name)
        if adapter_name in self.prompt_encoder:
            del self.prompt_encoder[adapter_name]

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str | None = None,
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
    ) -> None:
        """Add an adapter that is a weighted combination of others; it is frozen and not active.

        One adapter at weight 1 is given back exactly, whatever its variant.

        Args:
            adapters: their names.
            weights: one for each; negative ones subtract.
            adapter_name: what to call the combination.
            combination_type: see `adapterkit.nn.combination`; None takes the method's own (LoRA: ``svd``).
            svd_rank: rank of the combination where it is factorised anew; None takes the largest of theirs.
            svd_clamp: quantile at which the new factors are clamped.
            svd_full_matrices: accepted for PEFT's sake; changes nothing.
            svd_driver: accepted for PEFT's sake.
            density: share of the numbers that pruning keeps, above 0 and at most 1.
            majority_sign_method: whether TIES settles on a sign by the sum of the values or by counting.

        Raises:
            StateError: there is no adapter, one is unknown or without a config, or the name is taken.
            CapabilityError: the method has no such combination, or the adapters do not go together.
        """
        check_adapters(self.base_model, adapters)
        kind = combination_type or self.peft_config[adapters[0]].adapter_class().combination
        how = Combination(kind, svd_rank, svd_clamp, density, majority_sign_method)
        add_weighted(self.base_model, adapters, weights, adapter_name, how)

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
            outputs = self._call(args, kwargs)
        except BaseException:
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
        finally:
            self.base_model.selection.forget()

    # -- merging ------------------------------------------------------------------------------------------------------

    def merge_adapter(
        self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False, *, requantise: bool = False
    ) -> None:
        """Fold adapters into the base's weights, in place; `unmerge_adapter` puts the weights back bit for bit.

        Args:
            adapter_names: which adapters; None takes the active ones.
            safe_merge: refuse weights that are not finite, and change nothing then.
            requantise: keep quantised layers quantised. Otherwise they become plain layers, in full precision.

        ``base_model.merge_errors`` has, by layer, the largest difference between the weight stored and the exact one.
        """
        self._refuse_prompts("merge")
        self.base_model.merge(adapter_names, safe=safe_merge, requantise=requantise)

    def unmerge_adapter(self) -> None:
        """Undo `merge_adapter` exactly."""
        self.base_model.unmerge()

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
        *,
        requantise: bool = False,
    ) -> nn.Module:
        """The plain base model with the adapters folded into its weights, beside those that are merged already.

        Args:
            progressbar: show the layers going by.
            safe_merge: refuse weights that are not finite, and change nothing then.
            adapter_names: which adapters; None takes the active ones.
            requantise: as for `merge_adapter`.
        """
        self._refuse_prompts("merge_and_unload")
        options = {"safe": safe_merge, "progress": progressbar, "requantise": requantise}
        return self.base_model.unload(merge=True, names=adapter_names, **options)

    def unload(self) -> nn.Module:
        """The plain base model, without the adapters."""
        return self.base_model.unload(merge=False)

    def _refuse_prompts(self, operation: str) -> None:
        for name in self.prompt_encoder:
            method = self.peft_config[name].peft_type
            raise CapabilityError(f"{method} cannot {operation}: no weight expresses a prompt")


def wrapper_for(config: PeftConfig) -> type[PeftModel]:
    """The wrapper of a config's task; `PeftModel` itself where it has none."""
    if config.task_type is None:
        return PeftModel
    return resolve(tasks[config.task_type.lower()].wrapper)  # type: ignore[no-any-return]
