"""`PeftModel`: a base model and its named adapters, as one module with PEFT's public surface.

Four facts are kept apart for every adapter: loaded (it is in `peft_config`), active (the next forward uses it),
trainable (its parameters receive gradients) and merged (its change is in the base's weights). A call changes the one
it is named after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from adapterkit import checkpoint, saving
from adapterkit.card import write_card
from adapterkit.config.base import PeftConfig
from adapterkit.config.prompt import PromptConfig
from adapterkit.errors import CapabilityError, StateError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.nn.combination import Combination
from adapterkit.nn.selection import BASE, Routes
from adapterkit.registry import resolve, tasks
from adapterkit.status import TunerLayerStatus, TunerModelStatus, count_parameters, get_layer_status, get_model_status
from adapterkit.tuner import Tuner
from adapterkit.weighted import add_weighted


class PeftModel(nn.Module):
    """A base model with adapters. ``base_model`` is the tuner, ``base_model.model`` the model itself, changed in place.

    Args:
        model: the base model.
        peft_config: the first adapter's config.
        adapter_name: its name.
        autocast_adapter_dtype: keep adapters in float32 where the base is in a half type.
        low_cpu_mem_usage: make the adapter on the meta device, to be filled by loading.
    """

    task_type: ClassVar[str | None] = None
    heads: ClassVar[tuple[str, ...]] = ()
    """Names the output layer of such a model may have; it is trained and saved beside the adapter."""

    fill: ClassVar[Mapping[str, int]] = {"attention_mask": 1, "token_type_ids": 0}
    """With what value each keyword input grows when virtual tokens are put before it."""

    shifted: ClassVar[tuple[str, ...]] = ()
    """Keyword inputs that count columns, and move when virtual tokens are put before them."""

    trimmed: ClassVar[tuple[str, ...]] = ()
    """Outputs with a column for every input's, whose columns of virtual tokens are left out."""

    pooled_by: ClassVar[tuple[str, ...]] = ()
    """Modules that make one vector of the first column, which has to be a real one, or a prompt's, in every row."""

    base_model: Tuner

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

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The configs as they were honoured, by adapter name."""
        return self.base_model.configs

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that the next forward uses, innermost first."""
        return list(self.base_model.selection.active)

    @property
    def active_adapter(self) -> str:
        """The active adapter.

        Raises:
            StateError: none is active, or several are.
        """
        active = self.active_adapters
        if len(active) != 1:
            raise StateError(f"{len(active)} adapters are active: {active}; see active_adapters")
        return active[0]

    @property
    def active_peft_config(self) -> PeftConfig:
        return self.peft_config[self.active_adapter]

    @property
    def modules_to_save(self) -> set[str] | None:
        """The modules that are trained and saved whole, over all adapters."""
        names = {name for config in self.peft_config.values() for name in config.modules_to_save or ()}
        return names or None

    def get_base_model(self) -> nn.Module:
        """The base model itself, with adapted layers in place."""
        return self.base_model.model

    def get_prompt(self, batch_size: int, task_ids: torch.Tensor | None = None) -> Any:
        """The active adapter's virtual tokens for a batch: ``(batch_size, tokens, dim)``, or a filled cache.

        Raises:
            CapabilityError: the method has no virtual tokens.
        """
        return self._prompts().get_prompt(self, batch_size, task_ids)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> torch.Tensor:
        """The table of an adapter's virtual tokens ``(tokens, width)``, as it stands in a file; on the CPU."""
        return self._prompts().table_of(self, adapter_name)  # type: ignore[no-any-return]

    @property
    def prompt_tokens(self) -> dict[str, torch.Tensor]:
        """The numbers of the rows of every prompt's table, by adapter name."""
        return self._prompts().token_numbers(self)  # type: ignore[no-any-return]

    @property
    def word_embeddings(self) -> nn.Module:
        """The module that embeds the base model's input."""
        return self.get_base_model().get_input_embeddings()  # type: ignore[operator, no-any-return]

    @property
    def transformer_backbone_name(self) -> str:
        """Name of the base model's backbone; empty if the base model is one itself."""
        return self._prompts().backbone_name(self.get_base_model())  # type: ignore[no-any-return]

    @staticmethod
    def _prompts() -> Any:
        from adapterkit import prompts

        return prompts

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """The numbers of trainable and of all parameters; a 4-bit parameter counts for the numbers it stores."""
        return count_parameters(self)

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """The state of every adapted layer; see `adapterkit.status`."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """The state of all adapters; see `adapterkit.status`."""
        return get_model_status(self)

    def print_trainable_parameters(self) -> None:
        """Print ``trainable params: 294,912 || all params: 109,777,152 || trainable%: 0.2686``."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")

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
        prompt = None
        if config.is_prompt_learning:
            config, prompt = self._make_prompt(config, adapter_name, empty=low_cpu_mem_usage)
        config = self.base_model.add(adapter_name, config, **options)
        if prompt is not None:
            self.prompt_encoder[adapter_name] = prompt.requires_grad_(not config.inference_mode)
        if len(self.peft_config) > 1:
            self.set_requires_grad(adapter_name, False)

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
        """Whether adapters receive gradients; which ones are active does not change."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.base_model.require(name)
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
            StateError: an adapter is unknown, or the name is taken.
            CapabilityError: the method has no such combination, or the adapters do not go together.
        """
        self.base_model.require(*adapters)
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
        # Set anew in every forward, and not cleared after it: gradient checkpointing runs the layers again in backward.
        self.base_model.selection.routes = self._routes(adapter_names, args, kwargs)
        self._take_inputs(kwargs)
        prompt = self._active_prompt()
        if prompt is None:
            outputs = self.base_model(*args, **kwargs)
            return self.base_model.schedules.add_loss(outputs) if self.training else outputs
        return self._prompts().call_with_prompt(self, prompt, args, kwargs)

    def _take_inputs(self, kwargs: dict[str, Any]) -> None:
        """Move the inputs that active adapters read, and the base model does not know, to where they find them."""
        selection, configs = self.base_model.selection, self.peft_config
        names = selection.active if selection.routes is None else selection.routes.rows
        wanted = {field for name in names if name in configs for field in configs[name].forward_inputs}
        selection.inputs.clear()
        for field in wanted:
            value = kwargs.pop(field, None)
            if value is not None:
                selection.inputs[field] = value

    def _active_prompt(self) -> PromptAdapter | None:
        selection = self.base_model.selection
        if not selection.enabled or not len(self.prompt_encoder):
            return None
        names = selection.active if selection.routes is None else selection.routes.rows
        return next((self.prompt_encoder[n] for n in names if n in self.prompt_encoder), None)  # type: ignore

    def _routes(self, names: Sequence[str] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Routes | None:
        if names is None:
            return None
        if self.base_model.merged_adapters:
            raise StateError("adapter_names cannot be used while adapters are merged: unmerge first")
        self.base_model.require(*(name for name in dict.fromkeys(names) if name != BASE))
        rows = next((len(v) for v in [*args, *kwargs.values()] if isinstance(v, torch.Tensor) and v.ndim), len(names))
        if rows != len(names):
            raise StateError(f"adapter_names has {len(names)} names for a batch of {rows} rows")
        return Routes.of(names)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's ``generate`` with the active adapters; ``adapter_names`` as for `forward`."""
        selection = self.base_model.selection
        selection.routes = self._routes(adapter_names, args, kwargs)
        self._take_inputs(kwargs)
        prompt = self._active_prompt()
        try:
            if prompt is None:
                return self.get_base_model().generate(*args, **kwargs)  # type: ignore[operator]
            return self._prompts().generate_with_prompt(self, prompt, args, kwargs)
        finally:
            selection.routes = None

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
        """The plain base model with the adapters folded into its weights.

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
            raise CapabilityError(f"{self.peft_config[name].peft_type} cannot {operation}: no weight expresses a prompt")

    # -- files --------------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write adapters as PEFT does: ``default`` into the directory, any other into a folder of its name.

        Args:
            save_directory: where to; made if need be.
            safe_serialization: safetensors; otherwise a pickled dict.
            selected_adapters: which ones; None takes all.
            save_embedding_layers: as for `adapterkit.checkpoint.get_peft_model_state_dict`.
            is_main_process: other processes write nothing.
            kwargs: ``state_dict``: values to write instead of the model's own.

        Raises:
            StateError: an adapter is unknown.
        """
        names = list(self.peft_config) if selected_adapters is None else list(selected_adapters)
        self.base_model.require(*names)
        if not is_main_process:
            return
        directory, given = Path(save_directory), kwargs.pop("state_dict", None)
        if kwargs:
            raise TypeError(f"save_pretrained has no option {', '.join(kwargs)}")
        for name in names:
            state = checkpoint.get_peft_model_state_dict(self, given, name, save_embedding_layers=save_embedding_layers)
            config = self.peft_config[name].to_json(**self._base_facts(name))
            saving.write_adapter(self._folder(directory, name), state, config, safe=safe_serialization)
        write_card(directory, self)

    @staticmethod
    def _folder(directory: Path, name: str) -> Path:
        """Where adapter ``name`` is written: as PEFT does, ``default`` into the directory itself."""
        return directory if name == "default" else directory / name

    def _base_facts(self, name: str) -> dict[str, Any]:
        """What the file says of the base: where it comes from, or of which class it is."""
        base, config = self.get_base_model(), self.peft_config[name]
        path = config.base_model_name_or_path or getattr(getattr(base, "config", None), "name_or_path", None)
        facts: dict[str, Any] = {"base_model_name_or_path": path or None}
        if config.task_type is None:
            facts["auto_mapping"] = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
        return facts

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write ``README.md`` with the metadata the Hub reads; what a person wrote in it is kept."""
        write_card(Path(output_dir), self)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = True,
        *,
        strict: bool = True,
        **options: Any,
    ) -> checkpoint.LoadResult:
        """Load a saved adapter beside the others. It is not activated, and no other changes.

        Args:
            model_id: directory, or repository on the Hub.
            adapter_name: what to call it.
            is_trainable: whether it receives gradients.
            torch_device: device to read the file to.
            autocast_adapter_dtype: as for the class.
            low_cpu_mem_usage: make it on the meta device: nothing is initialised only to be overwritten.
            strict: every tensor of the file must be expected, and every expected one be there.
            options: the fields of `adapterkit.saving.Reading`, and ``subfolder``, ``revision``, ``token``, ...

        Raises:
            CheckpointError: the files cannot be read, or do not fit; the model is as before then.
        """
        reading = saving.Reading.of(options, strict=strict)
        known = adapter_name in self.peft_config
        config = None if known else reading.config(model_id).model_copy(update={"inference_mode": not is_trainable})
        state = reading.state(model_id, torch_device)
        if config is not None:
            self.add_adapter(adapter_name, config, low_cpu_mem_usage, autocast_adapter_dtype)
        try:
            return self._take(state, adapter_name, reading)
        except Exception:
            if not known:
                self.delete_adapter(adapter_name)
            raise

    def _take(self, state: checkpoint.State, name: str, reading: saving.Reading) -> checkpoint.LoadResult:
        """Give adapter ``name`` its tensors, and its mode: dropout is for adapters that are trained."""
        mismatched = reading.ignore_mismatched_sizes
        result = checkpoint.set_peft_model_state_dict(self, state, name, mismatched, strict=reading.strict)
        trained = not self.peft_config[name].inference_mode
        self.set_requires_grad(name, trained)
        for _, part in checkpoint.parts_of(self, name).values():
            part.train(trained)
        return result

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = True,
        torch_device: str | None = None,
        *,
        strict: bool = True,
        **options: Any,
    ) -> Self:
        """A base model with a saved adapter, wrapped as the adapter's task says.

        Args:
            model: the base model; changed in place.
            model_id: directory, or repository on the Hub.
            adapter_name: what to call the adapter.
            is_trainable: whether it receives gradients.
            config: taken instead of the file's.
            autocast_adapter_dtype: as for the class.
            low_cpu_mem_usage: as for `load_adapter`.
            torch_device: as for `load_adapter`.
            strict: as for `load_adapter`.
            options: the fields of `adapterkit.saving.Reading`, and ``subfolder``, ``revision``, ``token``, ...

        Raises:
            CheckpointError: the files cannot be read, or do not fit.
        """
        reading = saving.Reading.of(options, strict=strict)
        config = reading.config(model_id) if config is None else config
        state = reading.state(model_id, torch_device)
        config = config.model_copy(update={"inference_mode": not is_trainable})
        wrapper = wrapper_for(config) if cls is PeftModel else cls
        wrapped = wrapper(model, config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        try:
            wrapped._take(state, adapter_name, reading)
        except Exception:
            wrapped.unload()
            raise
        wrapped.train(is_trainable)
        return wrapped  # type: ignore[no-any-return]


def wrapper_for(config: PeftConfig) -> type[PeftModel]:
    """The wrapper of a config's task; `PeftModel` itself where it has none."""
    if config.task_type is None:
        return PeftModel
    return resolve(tasks[config.task_type.lower()].wrapper)  # type: ignore[no-any-return]
