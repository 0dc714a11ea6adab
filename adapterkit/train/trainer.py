"""`transformers.Trainer` for adapters: only the adapter in checkpoints, the pipeline's loss and predictions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction
from typing_extensions import override

from adapterkit.errors import CheckFailedError, ConfigError, TrainingError
from adapterkit.model import PeftModel
from adapterkit.schedules import Schedules
from adapterkit.train import resume, schedules
from adapterkit.train.pipeline import Batch, Encoded, Pipeline, own_positions
from adapterkit.train.seeds import EpochSampler

TRAINABLE = "trainable.safetensors"
"""File of a checkpoint with every tensor that is trained, by the name it has in the model."""


@final
class AdapterTrainer(Trainer):
    """Trains the trainable part of an adapted model.

    Args:
        model: the adapted model.
        args: see `adapterkit.train.arguments`.
        pipeline: batches, loss, predictions and metrics.
        train: training features.
        validation: features that are evaluated during training.
        adapter_name: the adapter that is trained.
        keep: how many checkpoints are kept, the best one included; None keeps all.
        owner: what checkpoints are marked with, `adapterkit.train.resume.digest` of the run.
        callbacks: further callbacks.
        optimizer: taken instead of the one that ``args`` names.
    """

    def __init__(
        self,
        model: PeftModel,
        args: TrainingArguments,
        *,
        pipeline: Pipeline,
        train: Encoded,
        validation: Encoded,
        adapter_name: str,
        keep: int | None,
        owner: str = "",
        callbacks: list[TrainerCallback],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if args.label_smoothing_factor and pipeline.smoothing_shift is None:
            raise ConfigError("trainer.label_smoothing_factor: the loss of this task cannot be smoothed")
        self.pipeline, self.adapter_name, self.keep, self.owner = pipeline, adapter_name, keep, owner
        self._scored: Encoded | None = None
        base = model.get_base_model()
        if getattr(base, "is_quantized", False):
            model._hf_peft_config_loaded = True  # type: ignore[assignment]  # what Trainer asks of a quantised model
        super().__init__(
            model=model,
            args=args,
            data_collator=pipeline.batch,
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=self._metrics,
            callbacks=[*callbacks, schedules.ScheduleSteps(model.base_model.schedules)],
            optimizers=(optimizer, None),
        )
        self.model_accepts_loss_kwargs = pipeline.smoothing_shift is not None and takes_counts(base)
        self.can_return_loss = True

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

    # -- computing ----------------------------------------------------------------------------------------------------

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, outputs = self._loss(model, inputs, num_items_in_batch)
        if model.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise CheckFailedError("the loss depends on nothing that is trained: does the forward use the adapter?")
        return (loss, outputs) if return_outputs else loss

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        if self.pipeline.computes_loss:
            loss, outputs = self.pipeline.loss(model, inputs)
        elif self.label_smoother is None:
            return super().compute_loss(model, inputs, True, num_items_in_batch)  # type: ignore[no-any-return]
        else:
            outputs = model(**inputs)
            loss = self._smoothed(outputs["logits"], inputs["labels"])
        if model.training:
            loss = schedules.add_loss(self._schedules, loss)
        return loss, outputs

    @property
    def _schedules(self) -> Schedules:
        adapted: PeftModel = self.accelerator.unwrap_model(self.model)
        return adapted.base_model.schedules

    def _smoothed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss with smoothed labels; the Trainer's own would not shift those of a wrapped language model."""
        own = own_positions(logits, labels.shape[1]) if labels.dim() > 1 else logits
        smoothed: Tensor = self.label_smoother({"logits": own}, labels, shift_labels=self.pipeline.smoothing_shift)
        return smoothed

    @override
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        name = getattr(self.model, "main_input_name", "input_ids")
        return 6 * inputs[name].numel() * self._computing if name in inputs else 0

    @cached_property
    def _computing(self) -> int:
        """The parameters that the estimate of floating point operations goes by: counted once, not in every step."""
        return int(self.model.num_parameters(exclude_embeddings=True))

    @override
    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1} (learning rate "
                f"{self._get_learning_rate():.3g}); lower trainer.learning_rate, or train in another type"
            )
        return loss

    @override
    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        batch: Batch = self._prepare_inputs(inputs)
        only_loss = prediction_loss_only or self.pipeline.generates
        loss, outputs, labels = super().prediction_step(model, batch, only_loss, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        if self.pipeline.generates:
            with torch.no_grad():
                outputs = self.pipeline.generate(self.accelerator.unwrap_model(model), batch)
            labels = batch["labels"]
        return loss, self.pipeline.reduce(outputs, batch), labels

    @override
    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        self._scored = dataloader.dataset  # type: ignore[assignment]
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _metrics(self, predicted: EvalPrediction) -> dict[str, float]:
        assert self._scored is not None
        return self.pipeline.score(predicted.predictions, predicted.label_ids, self._scored)

    @override
    def _get_train_sampler(self, train_dataset: TorchDataset[Any] | None = None) -> EpochSampler:
        encoded: Any = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        column = next(name for name in encoded.rows.column_names if name != "labels") if grouped else ""
        return EpochSampler(
            len(encoded),
            self.args.seed,
            strategy=self.args.train_sampling_strategy,
            lengths=[len(row) for row in encoded.rows[column]] if grouped else (),
            batch_size=self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps,
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @override
    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            given = {} if state_dict is None else {"state_dict": state_dict}
            model.save_pretrained(output_dir or self.args.output_dir, selected_adapters=[self.adapter_name], **given)

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            root = Path(self.args.output_dir)
            folder = root / f"checkpoint-{self.state.global_step}"
            if not self._is_sharded():
                save_file(self._trainable(), folder / TRAINABLE)
                schedules.save(self._schedules, folder)
            resume.mark_complete(folder, self.owner)
            resume.rotate(root, self.keep, best=self.state.best_model_checkpoint)

    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _trainable(self) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}

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
            self._restore(Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name)  # may have moved

    @torch.no_grad()
    def _restore(self, folder: Path) -> None:
        """Load the very tensors that were trained, and the adapter's files around them.

        Files may hold what the trained tensors result in: found again in the model, it does not take their place.
        """
        model = self.accelerator.unwrap_model(self.model)
        schedules.restore(self._schedules, folder)
        trained = load_file(folder / TRAINABLE)
        _copy(trained, model)
        model.load_adapter(resume.adapter_folder(folder), self.adapter_name, is_trainable=True)
        _copy(trained, model)


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
