"""`transformers.Trainer` for adapted models: adapters alone in checkpoints, the base model's inputs and loss."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils.generic import can_return_loss, find_labels
from typing_extensions import override

from adapterkit.errors import CapabilityError, CheckFailedError
from adapterkit.injection.schedules import Schedules
from adapterkit.model import PeftModel
from adapterkit.train import schedules
from adapterkit.train.layout import adapter_folder
from adapterkit.train.pipeline import own_positions

TRAINABLE = "trainable.safetensors"
"""File of a checkpoint with every tensor that is trained, by the name it has in the model."""


class AdapterTrainer(Trainer):
    """`transformers.Trainer`, with its arguments, as it is with PEFT's models.

    transformers asks whether a model is of PEFT's classes. It takes any other for a model of its own kind: it drops the
    columns of the data that ``forward`` does not name, evaluates without labels, smooths them unshifted, and saves the
    base model whole. Here checkpoints and `save_model` write the adapters, in PEFT's files, and a resumed training goes
    on with the very tensors that it had. What a method does in every step (AdaLoRA's ranks) is done, and several
    processes train together even where the model was evaluated first.

    Other trainers become like it by ``class MyTrainer(AdapterTrainer, Seq2SeqTrainer)``, those of TRL among them. Where
    they compute a loss of their own, the columns it needs and how it is divided are theirs.

    Raises:
        CapabilityError: the model is no `PeftModel`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in {parent.__module__ for parent in cls.__mro__} & sys.modules.keys():
            _recognise(sys.modules[name])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given: Any = args[0] if args else kwargs.get("model")
        if given is not None:
            if not hasattr(given, "get_base_model"):
                raise CapabilityError(f"AdapterTrainer trains a PeftModel, and this is a {type(given).__name__}")
            if getattr(given.get_base_model(), "is_quantized", False):
                given._hf_peft_config_loaded = True  # what Trainer asks of a quantised model
        super().__init__(*args, **kwargs)
        self.add_callback(schedules.ScheduleSteps())
        base = self.adapted.get_base_model()
        if self._computes_usual_loss:
            self.model_accepts_loss_kwargs = takes_counts(base) and not self.args.label_smoothing_factor
        self.can_return_loss = can_return_loss(type(base))
        if self.args.label_names is None:
            self.label_names = find_labels(type(base))

    @property
    def adapted(self) -> PeftModel:
        """The model, without what it is wrapped in for training."""
        model: PeftModel = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    @property
    def _computes_usual_loss(self) -> bool:
        """Whether the loss is that of transformers' own trainers, and not of one that this class is mixed with."""
        return super().compute_loss.__func__ is Trainer.compute_loss

    # -- computing ----------------------------------------------------------------------------------------------------

    @override
    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.accelerator.num_processes > 1 and not self._is_sharded():
            self._forget_evaluation()
        return super().train(*args, **kwargs)

    def _forget_evaluation(self) -> None:
        """A model that was evaluated counts as prepared, and would not be wrapped: every process would train alone."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model._is_accelerate_prepared = False
        self.accelerator._models.clear()

    @override
    def _set_signature_columns_if_needed(self) -> None:
        columns: list[str] | None = self._signature_columns  # type: ignore[has-type]
        if columns is not None:
            return
        model = self.adapted
        names: list[str] = [*inspect.signature(model.get_base_model().forward).parameters, "label", "label_ids"]
        if not self._computes_usual_loss:
            super()._set_signature_columns_if_needed()
            names = self._signature_columns  # type: ignore[has-type]
        own = [name for config in model.peft_config.values() for name in sorted(config.forward_inputs)]
        self._signature_columns = [*dict.fromkeys([*names, *own, *self.label_names])]

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, outputs = self._loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise CheckFailedError("the loss depends on nothing that is trained: does the forward use the adapter?")
        return (loss, outputs) if return_outputs else loss

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], wants_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        is_smoothed = self.label_smoother is not None and "labels" in inputs and self.compute_loss_func is None
        if not (is_smoothed and self._computes_usual_loss):
            found: Any = super().compute_loss(model, inputs, wants_outputs, num_items_in_batch)
            return found if wants_outputs else (found, None)
        outputs = model(**inputs)
        loss = self._smoothed(outputs["logits"], inputs["labels"])
        return (schedules.add_loss(self._schedules, loss) if model.training else loss), outputs

    @property
    def _schedules(self) -> Schedules:
        return self.adapted.base_model.schedules

    @property
    def _shifts_labels(self) -> bool:
        """Whether the base model's labels are those of the positions before."""
        return type(self.adapted.get_base_model()).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    def _smoothed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss with smoothed labels; the Trainer's own would not shift those of a wrapped language model."""
        own = own_positions(logits, labels.shape[1]) if labels.dim() > 1 else logits
        smoothed: Tensor = self.label_smoother({"logits": own}, labels, shift_labels=self._shifts_labels)
        return smoothed

    @override
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        name = getattr(self.model, "main_input_name", "input_ids")
        return 6 * inputs[name].numel() * self._computing if name in inputs else 0

    @cached_property
    def _computing(self) -> int:
        """The parameters that the estimate of floating point operations goes by: counted once, not in every step."""
        return int(self.model.num_parameters(exclude_embeddings=True))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @override
    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        given: dict[str, Any] = {} if state_dict is None else {"state_dict": state_dict}
        self.adapted.save_pretrained(folder, **given)
        processing = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if processing is not None:
            processing.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save and not self._is_sharded():
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            save_file(self._trainable(), folder / TRAINABLE)
            schedules.save(self._schedules, folder)

    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _trainable(self) -> dict[str, Tensor]:
        return {name: p.detach().contiguous() for name, p in self.adapted.named_parameters() if p.requires_grad}

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_sharded():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._restore(Path(resume_from_checkpoint))

    @override
    def _load_best_model(self) -> None:
        if self._is_sharded():
            super()._load_best_model()
        else:
            self._restore(self._best_checkpoint())

    def _best_checkpoint(self) -> Path:
        return Path(self.state.best_model_checkpoint)

    @torch.no_grad()
    def _restore(self, folder: Path) -> None:
        """Load the very tensors that were trained, and the adapters' files around them.

        Files may hold what the trained tensors result in: found again in the model, it does not take their place.
        """
        model = self.adapted
        schedules.restore(self._schedules, folder)
        trained = load_file(folder / TRAINABLE) if (folder / TRAINABLE).is_file() else {}
        _copy(trained, model)
        for name in model.peft_config:
            model.load_adapter(adapter_folder(folder, name), name)
        _copy(trained, model)


def _recognise(module: ModuleType) -> None:
    """Let a trainer's module, which asks accelerate whether a model is of PEFT's classes, take ours for one.

    TRL goes by the answer when it looks for the base model, and for the reference that a model is without its adapters.
    """
    asked: Any = vars(module).get("is_peft_model")
    if asked is not None and not hasattr(asked, "__wrapped__"):

        @functools.wraps(asked)
        def is_peft_model(model: nn.Module) -> bool:
            return isinstance(extract_model_from_parallel(model), PeftModel) or asked(model)

        vars(module)["is_peft_model"] = is_peft_model


def _copy(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def takes_counts(base: nn.Module) -> bool:
    """Whether a model's loss can be divided by the number of labels of several accumulated batches.

    Models of transformers take the number among their keyword arguments, but only those that hand them on to
    ``self.loss_function`` honour it.
    """
    forward = inspect.unwrap(type(base).forward)
    keywords = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())
    return keywords and "loss_function" in forward.__code__.co_names
