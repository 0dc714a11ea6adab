"""One run, from its configuration to its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback

from adapterkit.build import get_peft_model
from adapterkit.config.run import RunConfig
from adapterkit.config.task import more_is_better
from adapterkit.errors import ConfigError, StateError
from adapterkit.files import remove_unused
from adapterkit.model import PeftModel
from adapterkit.optimizers import optimizer_for
from adapterkit.train import fingerprints, layout, lengths, plots, processes, resume, screen
from adapterkit.train.arguments import check_optimizer, fit_warm_up, steps_of, training_arguments
from adapterkit.train.beginning import start_from_data
from adapterkit.train.console import console, logger
from adapterkit.train.directory import TIMINGS, MetricsFile, PlainLines, RunDirectory
from adapterkit.train.inputs import Inputs, read_inputs
from adapterkit.train.models import load_base, use_padding_of
from adapterkit.train.pipeline import Encoded
from adapterkit.train.seeds import seed_everything
from adapterkit.train.trainer import RunTrainer
from adapterkit.train.tripwires import MovementCheck

Loader = Callable[..., PreTrainedModel]
Reader = Callable[[RunConfig, Any], Inputs]


class Prepared(NamedTuple):
    """Everything a run needs before its first step."""

    inputs: Inputs
    model: PeftModel


def run(
    config: RunConfig, directory: Path, *, load: Loader = load_base, read: Reader = read_inputs, quiet: bool = False
) -> dict[str, Any]:
    """Train one adapter and write the run's directory.

    Args:
        config: the whole configuration, method and task included.
        directory: where the run goes, unless ``config.resume`` finds an interrupted one to go on with, or that this one
            has ended there.
        load: loads the base model; called as `load_base` is. A sweep passes one that keeps the base.
        read: reads tokenizer and data; called as `read_inputs` is. A sweep passes one that keeps them.
        quiet: print nothing; ``run.log`` is written all the same.

    Returns:
        the content of ``summary.json``, and the ``directory`` that was written.

    Raises:
        ConfigError: the configuration cannot be honoured: model, data, targets, loggers.
        TrainingError: the loss is no longer a number.
        CheckFailedError: the adapter did not move.
    """
    directory = Path(directory)
    with processes.joined(config, directory):
        where, checkpoint = processes.agreed(lambda: resume.choose(config, directory))
        if where != directory:
            remove_unused(directory)  # Hydra made it
        goes_on, passed = resume.goes_on(config, where), resume.passed_over(config, where)
        record = RunDirectory(where, config)
        with console(quiet or not record.writes), record.recording(resumed=goes_on):
            if checkpoint is not None:
                logger.info("going on in %s from step %d", where, resume.step_of(checkpoint))
            elif passed and not goes_on:
                logger.info(passed)
            prepared = prepare(config, record, load=load, read=read)
            if checkpoint is not None:
                resume.check_same(where, checkpoint, record.manifest)
            ended = processes.agreed(lambda: resume.has_ended(config, where, record.manifest))
            if ended:
                logger.info("this run has ended well: nothing is trained; to train it anew, leave resume out")
            elif not config.dry_run:
                _fit(config, prepared, record, checkpoint)
    summary = layout.read_summary(where) if ended else record.summary
    result = {**summary, "directory": str(where)}
    if not quiet and record.writes:
        screen.show(config, result, record.manifest)
    return result


def prepare(
    config: RunConfig, record: RunDirectory, *, load: Loader = load_base, read: Reader = read_inputs
) -> Prepared:
    """Data, base model and adapter of a run; a dry run has no weights."""
    method = with_task(config)
    with record.timed("data"):
        inputs = read(config, method)
    pipeline, data, options = inputs.pipeline, inputs.data, inputs.model_options
    with record.timed("model"):
        seed_everything(config.seed, deterministic=config.deterministic)
        base = load(config.model, config.task, device="meta" if config.dry_run else None, **options)
        use_padding_of(base, pipeline.tokenizer)
        base_id = {"name": base.name_or_path, "fingerprint": fingerprints.base_fingerprint(base)}
        seed_everything(config.seed, deterministic=config.deterministic)
        model = get_peft_model(base, method, config.adapter_name)
    pipeline.fit_into(base, getattr(method, "num_virtual_tokens", 0))
    sizes = {name: len(split) for name, split in data.splits().items()}
    record.note(
        base=base_id,
        model_options=options,
        data={
            "source": data.source,
            "fingerprint": data.fingerprint,
            "examples": sizes,
            "roles": data.train.column_names,
        },
        learnt=pipeline.memory(),
    )
    _note_trained(record, model)
    logger.info("%(trainable_parameters)d of %(all_parameters)d parameters are trained", record.summary)
    return Prepared(inputs, model)


def _note_trained(record: RunDirectory, model: PeftModel) -> None:
    trainable, total = model.get_nb_trainable_parameters()
    record.note(trained=[name for name, parameter in model.named_parameters() if parameter.requires_grad])
    record.summary |= {"trainable_parameters": trainable, "all_parameters": total}


def with_task(config: RunConfig) -> Any:
    """The method's config with the task's type.

    Raises:
        ConfigError: it has another one.
    """
    method, wanted = config.method, config.task.task_type
    if method.task_type not in (None, wanted):
        raise ConfigError(f"method.task_type={method.task_type} does not go with task={config.task.name} ({wanted})")
    return method.model_copy(update={"task_type": wanted})


def _fit(config: RunConfig, prepared: Prepared, record: RunDirectory, checkpoint: Path | None) -> None:
    (inputs, model), pipeline = prepared, prepared.inputs.pipeline
    with record.timed("features"):
        encoded = {split: inputs.features(split) for split in inputs.data.splits()}
        train, validation, test = encoded["train"], encoded["validation"], encoded.get("test")
        for line in lengths.told(pipeline, encoded.values()):
            logger.warning(line)
    with record.timed("start"):
        if start_from_data(config, model, pipeline, train):
            _note_trained(record, model)
    trainer = make_trainer(config, prepared, train, validation, record=record, checkpoint=checkpoint)
    _settle_steps(config, model, trainer, len(train))
    with record.timed("baseline"):
        baseline = pipeline.baseline(train, validation) or scores(trainer, validation)
    metric = trainer.args.metric_for_best_model.removeprefix("eval_")
    record.summary |= {
        "metric": metric,
        "greater_is_better": more_is_better(metric, config.trainer, config.task),
        "baseline": baseline,
        "baseline_name": pipeline.baseline_name,
    }
    _check_metric(metric, baseline)
    record.take()
    seed_everything(config.seed, deterministic=config.deterministic)
    with record.timed("training"):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    with record.timed("evaluation"):
        found = scores(trainer, validation)
        if test is not None:
            found |= {f"test_{name}": value for name, value in scores(trainer, test).items()}
    record.summary["metrics"] = found
    if record.writes:
        record.summary["adapter_bytes"] = _save(model, config.adapter_name, record.path / layout.ADAPTER)
        entries = layout.read_metrics(record.path)
        plots.draw(entries, record.path / layout.PLOTS, metric=metric, baseline=baseline.get(metric))


def _settle_steps(config: RunConfig, model: PeftModel, trainer: RunTrainer, examples: int) -> None:
    """What depends on the number of steps, before the first is taken."""
    steps = steps_of(trainer.args, examples)
    fit_warm_up(trainer.args, config.trainer, steps)
    try:
        model.base_model.schedules.begin(steps)
    except StateError as error:
        raise ConfigError(f"method: {error}") from error


def _check_metric(metric: str, baseline: dict[str, float]) -> None:
    known = {*baseline, "loss"}
    if metric not in known:
        raise ConfigError(f"trainer.metric_for_best_model={metric}: this task measures {', '.join(sorted(known))}")


def make_trainer(
    config: RunConfig,
    prepared: Prepared,
    train: Encoded,
    validation: Encoded,
    *,
    record: RunDirectory,
    checkpoint: Path | None,
) -> RunTrainer:
    """The trainer of a run, with its callbacks."""
    root = record.path / layout.CHECKPOINTS
    pipeline = prepared.inputs.pipeline
    args = training_arguments(config, root, label_names=pipeline.label_names, default_metric=pipeline.default_metric)
    optimizer = optimizer_for(prepared.model, config.trainer, args)  # before anything looks at what is trained
    if optimizer is not None:
        _note_trained(record, prepared.model)
    else:
        check_optimizer(args, prepared.model)
    sharded = bool(config.trainer.fsdp or config.trainer.deepspeed)
    callbacks = [MovementCheck(prepared.model, steps=config.trainer.check_steps, sharded=sharded)]
    if record.writes:
        step = 0 if checkpoint is None else resume.step_of(checkpoint)
        callbacks.append(MetricsFile(record.path / layout.METRICS, step=step))
    patience, threshold = config.trainer.early_stopping_patience, config.trainer.early_stopping_threshold
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience, threshold))
    if args.disable_tqdm:
        callbacks.append(PlainLines())
    trainer = RunTrainer(
        prepared.model,
        args,
        pipeline=pipeline,
        train=train,
        validation=validation,
        adapter_name=config.adapter_name,
        keep=config.trainer.save_total_limit,
        owner=resume.digest(config),
        callbacks=callbacks,
        optimizer=optimizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def scores(trainer: RunTrainer, encoded: Encoded) -> dict[str, float]:
    """Loss and metrics of the model as it is."""
    found = trainer.predict(encoded, metric_key_prefix="now").metrics
    return {key.removeprefix("now_"): float(v) for key, v in found.items() if not key.endswith(TIMINGS)}


def _save(model: PeftModel, adapter_name: str, directory: Path) -> int:
    """Write the adapter, and return the bytes of its weights."""
    model.save_pretrained(directory, selected_adapters=[adapter_name])
    return sum(path.stat().st_size for path in layout.adapter_folder(directory, adapter_name).glob("adapter_model.*"))
