"""The trainer of a run: the pipeline's batches, loss, predictions and metrics, and checkpoints that can be resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction
from typing_extensions import override

from adapterkit.errors import ConfigError, TrainingError
from adapterkit.model import PeftModel
from adapterkit.train import resume, schedules
from adapterkit.train.adapter_trainer import AdapterTrainer
from adapterkit.train.pipeline import Batch, Encoded, Pipeline
from adapterkit.train.seeds import EpochSampler


@final
class RunTrainer(AdapterTrainer):
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
            raise ConfigError(
                "trainer.label_smoothing_factor: the loss of this task, or of regression, cannot be smoothed"
            )
        self.pipeline, self.adapter_name, self.keep, self.owner = pipeline, adapter_name, keep, owner
        self._scored: Encoded | None = None
        super().__init__(
            model,
            args,
            data_collator=pipeline.batch,
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=self._metrics,
            callbacks=callbacks,
            optimizers=(optimizer, None),
        )
        self.model_accepts_loss_kwargs &= pipeline.smoothing_shift is not None
        self.can_return_loss = True

    # -- computing ----------------------------------------------------------------------------------------------------

    @override
    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], wants_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        if not self.pipeline.computes_loss:
            return super()._loss(model, inputs, wants_outputs, num_items_in_batch)
        loss, outputs = self.pipeline.loss(model, inputs)
        return (schedules.add_loss(self._schedules, loss) if model.training else loss), outputs

    @property
    @override
    def _shifts_labels(self) -> bool:
        return bool(self.pipeline.smoothing_shift)

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
            given: dict[str, Any] = {} if state_dict is None else {"state_dict": state_dict}
            self.adapted.save_pretrained(
                output_dir or self.args.output_dir, selected_adapters=[self.adapter_name], **given
            )

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            root = Path(self.args.output_dir)
            resume.mark_complete(root / f"checkpoint-{self.state.global_step}", self.owner)
            resume.rotate(root, self.keep, best=self.state.best_model_checkpoint)

    @override
    def _best_checkpoint(self) -> Path:
        return Path(self.args.output_dir) / super()._best_checkpoint().name  # the run may have been moved
