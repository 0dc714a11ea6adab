"""Names that other packages define, written down here so that they are checked without importing those packages."""

from __future__ import annotations

from typing import Literal, get_args

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "greedy",
]
"""Schedulers of transformers that need no arguments of their own."""

EVALUATING: tuple[Scheduler, ...] = ("reduce_lr_on_plateau", "greedy")
"""Those that go by evaluations."""

WITHOUT_WARM_UP: tuple[Scheduler, ...] = ("constant", *EVALUATING)
"""Those that begin at the learning rate itself."""

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_anyprecision",
    "adafactor",
    "ademamix",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "stable_adamw",
]
"""Optimizers of transformers."""

_OTHERS = (
    "adafactor", "adagrad", "adalomo", "galore", "grokadamw", "lomo", "rmsprop", "schedule_free_sgd", "sgd"
)  # fmt: skip
WITHOUT_BETAS = tuple(name for name in get_args(Optimizer) if name.startswith(_OTHERS))
"""Those that transformers gives neither Adam's coefficients nor its epsilon."""

WITHOUT_EPSILON = tuple(name for name in get_args(Optimizer) if name in WITHOUT_BETAS or "lion" in name)
"""Those that it gives no epsilon."""

FSDP_OPTIONS = (
    "full_shard",
    "shard_grad_op",
    "no_shard",
    "hybrid_shard",
    "hybrid_shard_zero2",
    "offload",
    "auto_wrap",
)
"""Words of ``trainer.fsdp``."""

Logger = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Loggers that an extra installs, each under the name of its module."""

LOGGERS: tuple[str, ...] = get_args(Logger)
"""The same, to look one up."""

BUILTIN_PREFIX = "builtin:"
BUILTIN_FAMILIES = ("bert", "gpt2", "llama", "t5")
"""Tiny models that are made from a config, ``builtin:bert``."""
