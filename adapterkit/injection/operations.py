"""What can be done with the adapters of a model, under PEFT's names: on the model, and on the tuner in it."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import nn

from adapterkit.errors import CapabilityError
from adapterkit.given import names_of
from adapterkit.nn.combination import Combination

if TYPE_CHECKING:
    from adapterkit.injection.tuner import Tuner


class Operations(nn.Module):
    """The part that `PeftModel` and `Tuner` have in common."""

    @property
    @abstractmethod
    def _tuner(self) -> Tuner:
        """The tuner that has the adapters."""

    @property
    def targeted_module_names(self) -> list[str]:
        """The names that adapted layers have in the base model, in its order."""
        adapted = [target for target, layer in self._tuner.layers.items() if layer.uses("adapters")]
        places = {name: place for place, name in enumerate(self._tuner.names)}
        return sorted(adapted, key=lambda name: places.get(name, len(places)))  # last, what copies are made of

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether an adapter's method changes weights, so that `convert_to_lora` can express it.

        Raises:
            StateError: unknown name.
        """
        self._tuner.require(adapter_name)
        config = self._tuner.configs.get(adapter_name)
        return config is not None and not config.is_prompt_learning and config.adapter_class().mergeable

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use this adapter alone from now on, and train it; those that were active before are frozen.

        Args:
            adapter_name: which one; a list activates several, the first one innermost.
            inference_mode: leave it frozen.

        Raises:
            StateError: unknown name; lists the known ones.
        """
        wanted = names_of(adapter_name)
        before = self._tuner.selection.active
        self._tuner.activate(wanted)
        self.set_requires_grad([name for name in before if name not in wanted], False)
        self.set_requires_grad(wanted, not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Whether adapters receive gradients; which ones are active does not change.

        Raises:
            StateError: a name is unknown; nothing is changed then.
        """
        names = names_of(adapter_names, "adapter_names")
        self._tuner.require(*names)
        for name in names:
            self._tuner.set_trainable(name, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was active, none takes its place.

        Raises:
            StateError: unknown, or merged.
        """
        self._tuner.delete(adapter_name)

    def disable_adapter_layers(self) -> None:
        """From now on the model is the base model, merged or not; what is active and what is trained stays so."""
        self._tuner.selection.enabled = False

    def enable_adapter_layers(self) -> None:
        """Undo `disable_adapter_layers`."""
        self._tuner.selection.enabled = True

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
            svd_rank: rank of the combination where it is factorised anew; None takes the largest in
                their configs, patterns included.
            svd_clamp: quantile at which the new factors are clamped.
            svd_full_matrices: accepted for PEFT's sake; changes nothing.
            svd_driver: accepted for PEFT's sake.
            density: share of the numbers that pruning keeps, above 0 and at most 1.
            majority_sign_method: whether TIES settles on a sign by the sum of the values or by counting.

        A setting that the combination does not read is told in a warning.

        Raises:
            StateError: there is no adapter, one is unknown or without a config, or the name is taken.
            CapabilityError: the method has no such combination, or not of these settings, or of these adapters.
        """
        from adapterkit.injection.weighted import add_weighted, check_adapters  # which imports the tuner

        adapters = names_of(adapters, "adapters")
        check_adapters(self._tuner, adapters)
        own = self._tuner.configs[adapters[0]].adapter_class().combination
        kind = own if combination_type is None else combination_type
        how = Combination(kind, svd_rank, svd_clamp, density, majority_sign_method)
        add_weighted(self._tuner, adapters, weights, adapter_name, how)
        if unused := how.unused():
            warnings.warn(unused, UserWarning, stacklevel=2)

    def merge_adapter(
        self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False, *, requantise: bool = False
    ) -> None:
        """Fold adapters into the base's weights, in place; `unmerge_adapter` puts the weights back bit for bit.

        Args:
            adapter_names: which adapters; None takes the active ones. They come beside those that are merged already.
            safe_merge: refuse weights that are not finite, and change nothing then.
            requantise: keep quantised layers quantised. Otherwise they become plain layers, in full precision.

        ``base_model.merge_errors`` has, by layer, the largest difference between the weight stored and the exact one.
        """
        self._refuse_prompts("merge")
        self._tuner.merge(adapter_names, safe=safe_merge, requantise=requantise)

    def unmerge_adapter(self) -> None:
        """Undo `merge_adapter` exactly."""
        self._tuner.unmerge()

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
        return self._tuner.unload(merge=True, names=adapter_names, **options)

    def _refuse_prompts(self, operation: str) -> None:
        for config in self._tuner.configs.values():
            if config.is_prompt_learning:
                raise CapabilityError(f"{config.peft_type} cannot {operation}: no weight expresses a prompt")
