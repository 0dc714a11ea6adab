"""Adapters that start from data are shown the run's own."""

from __future__ import annotations

import logging
from typing import Any

from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapterkit.config.run import RunConfig
from adapterkit.model import PeftModel
from adapterkit.registry import referenced
from adapterkit.train.pipeline import Batch, Encoded, Pipeline
from adapterkit.train.seeds import EpochSampler

logger = logging.getLogger("adapterkit")


def start_from_data(config: RunConfig, model: PeftModel, pipeline: Pipeline, train: Encoded) -> bool:
    """Show the training data to an adapter whose start depends on them.

    Args:
        config: the run.
        model: the adapted model, which is moved to where it is going to be trained.
        pipeline: makes batches and the loss.
        train: training features.

    Returns:
        whether there was anything to do.
    """
    name = config.adapter_name
    where = model.peft_config[name].data_init
    if where is None:
        return False
    if not getattr(model.get_base_model(), "is_quantized", False):
        model.to(PartialState(cpu=config.trainer.use_cpu or None).device)
    batches: DataLoader[Any] = DataLoader(
        train,  # type: ignore[arg-type]
        batch_size=config.trainer.per_device_train_batch_size,
        sampler=EpochSampler(len(train), config.seed),
        collate_fn=pipeline.batch,
    )

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return pipeline.loss(model, batch)[0]

    start: Any = referenced(type(model.peft_config[name]), "data_init", where)
    start(model, name, batches, loss=loss)
    logger.info("the adapter starts from the training data")
    return True
