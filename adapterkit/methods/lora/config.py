"""Settings of LoRA and its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from typing_extensions import override

from adapterkit.config.base import Form
from adapterkit.config.layer import IndexedLayerConfig, Ranges, Token, TokenIndices
from adapterkit.config.strict import Choice, Names, PositiveNumber
from adapterkit.methods.lora.starts import BdLoraConfig, CordaConfig, EvaConfig, LoftQConfig, LoraGAConfig

Init = Literal["gaussian", "olora", "pissa", "orthogonal", "eva", "corda", "lora_ga", "loftq", "mica"]
_SETTINGS = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config", "loftq": "loftq_config"}


class LoraConfig(IndexedLayerConfig):
    """LoRA (Hu et al., 2021), https://arxiv.org/abs/2106.09685: ``y = W x + (alpha / r) B A x``.

    With ``use_rslora`` the scale is ``alpha / sqrt(r)`` (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732); with
    ``use_dora`` the weight's magnitude is learnt apart (Liu et al., 2024, https://arxiv.org/abs/2402.09353).
    """

    adapter: ClassVar[str] = "adapterkit.methods.lora.adapter:LoraAdapter"
    padding: ClassVar[str | None] = "adapterkit.methods.lora.padding:pad"
    stacking: ClassVar[str | None] = "adapterkit.methods.lora.experts:stacked"
    runtime_fields: ClassVar[frozenset[str]] = frozenset({"compute_dtype"})
    pattern_fields: ClassVar[dict[str, str]] = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
    optimizers: ClassVar[dict[str, str]] = {
        "loraplus_lr_ratio": "adapterkit.methods.lora.optimizers:loraplus",
        "lorafa": "adapterkit.methods.lora.optimizers:lorafa",
    }
    start_fields: ClassVar[dict[str, Any]] = {
        "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
        "eva_config": None,
    }
    only_with: ClassVar[dict[str, tuple[str, Any]]] = {
        **{field: ("init_lora_weights", scheme) for scheme, field in _SETTINGS.items()},
        "qalora_group_size": ("use_qalora", True),
    }
    inert: ClassVar[dict[str, Any]] = {"megatron_core": "megatron.core"}
    folding: ClassVar[str | None] = "adapterkit.methods.lora.folding:folded"
    folded_fields: ClassVar[frozenset[str]] = frozenset(
        {"use_rslora", "rank_pattern", "alpha_pattern", "use_bdlora", "use_qalora"}
    )
    based_fields: ClassVar[frozenset[str]] = frozenset({"use_dora", "init_lora_weights"})

    peft_type: Annotated[Literal["LORA"], Choice] = Field("LORA", description="Name of the method.")
    r: PositiveInt = Field(8, description="Rank of the update.")
    lora_alpha: PositiveNumber = Field(8, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    fan_in_fan_out: bool = Field(
        False, description="Whether layers store (in, out). Recognised by itself; kept for PEFT's files."
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained, too.")
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r), which stays stable at high rank.")
    use_dora: bool = Field(False, description="Learn the weight's magnitude apart from its direction.")
    lora_bias: bool = Field(False, description="Give the second factor a bias of its own.")
    init_lora_weights: bool | Annotated[Init, Choice] | Annotated[str, Field(pattern=r"^pissa_niter_\d+$")] = Field(
        True,
        description="true (A random, B zero), gaussian, orthogonal, olora, pissa, pissa_niter_<n>, loftq, mica (B "
        "frozen), from the training data eva, corda or lora_ga, or false (both random, for tests).",
    )
    eva_config: EvaConfig | None = Field(None, description="Settings of init_lora_weights=eva.")
    corda_config: CordaConfig | None = Field(None, description="Settings of init_lora_weights=corda.")
    lora_ga_config: LoraGAConfig | None = Field(None, description="Settings of init_lora_weights=lora_ga.")
    loftq_config: Annotated[LoftQConfig | None, BeforeValidator(lambda value: value or None)] = Field(
        None, description="Settings of init_lora_weights=loftq."
    )
    rank_pattern: dict[str, PositiveInt] = Field(
        default_factory=dict, description="Other ranks for some modules: {name suffix or regex: r}."
    )
    alpha_pattern: dict[str, PositiveNumber] = Field(
        default_factory=dict, description="Other alphas for some modules: {name suffix or regex: alpha}."
    )
    target_parameters: Names | None = Field(
        None,
        description="Parameters to adapt that no layer of their own applies, such as stacked experts: names or name "
        "suffixes ('experts.down_proj'). Not narrowed by layers_to_transform.",
    )
    layer_replication: Ranges | None = Field(
        None,
        description="Ranges [start, end) of the base's layers that are stacked to a deeper model: [[0, 4], [2, 5]]. "
        "Replicas share their weights, and each has an adapter of its own.",
    )
    trainable_token_indices: TokenIndices | None = Field(
        None,
        description="Tokens whose embeddings are trained beside the adapter: a list for the input embedding, which "
        "tied output layers follow, or {layer name: list}.",
    )
    use_qalora: bool = Field(
        False, description="QA-LoRA, on quantised layers: the first factor sees the mean of every group of inputs."
    )
    qalora_group_size: PositiveInt = Field(16, description="With use_qalora: inputs in a group.")
    use_bdlora: BdLoraConfig | None = Field(
        None, description="BD-LoRA: one factor of each layer is block-diagonal, for serving on several devices."
    )
    alora_invocation_tokens: Annotated[list[Token], Field(min_length=1)] | None = Field(
        None,
        description="aLoRA: the ids of a sequence of tokens; the adapter acts from its last occurrence in a row on, "
        "and on rows without one not at all.",
    )
    ensure_weight_tying: bool = Field(
        False,
        description="Adapt, or train whole, the input embedding and the layers that share its weight as one, where any "
        "of them is meant.",
    )
    compute_dtype: Literal["input", "adapter"] = Field(
        "input",
        description="Type the low-rank products are computed in: the activations', or the factors' own (as in PEFT).",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_settings(cls, data: Any) -> Any:
        field = _SETTINGS.get(str(data.get("init_lora_weights"))) if isinstance(data, dict) else None
        if field is None or data.get(field):
            return data
        return {**data, field: LoftQConfig() if field == "loftq_config" else {}}

    @override
    def at(self, module_name: str) -> Self:
        config = super().at(module_name)
        if self.use_bdlora is None:
            return config
        return config.model_copy(update={"use_bdlora": self.use_bdlora.at(module_name)})

    @override
    def saved_forms(self) -> Sequence[Form]:
        blocks = self.use_bdlora.nblocks if self.use_bdlora is not None else 1
        of_b = blocks if self.use_bdlora is not None and self.use_bdlora.target_modules_bd_b else 1
        beside: Form = {"lora_magnitude_vector": ("out",)} if self.use_dora else {}
        bias: Form = {"lora_B.bias": ("out",)} if self.lora_bias else {}
        linear: Form = {"lora_A.weight": (self.r, "in"), "lora_B.weight": ("out", self.r // of_b), **bias, **beside}
        table: Form = {"lora_embedding_A": (self.r, "rows"), "lora_embedding_B": ("out", self.r), **beside}
        length: Form = {"lora_magnitude_vector": (1, "out", "...")} if self.use_dora else {}
        conv: Form = {
            "lora_A.weight": (self.r, "in", "kernel", "..."),
            "lora_B.weight": ("out", "r / groups", 1, "..."),
            **bias,
            **length,
        }
        stacked: Form = {"lora_A.weight": ("experts * r", "in"), "lora_B.weight": ("out", "experts * r")}
        return (linear, table, conv, *([stacked] if self.target_parameters else []))

    @override
    def carries(self, field: str) -> bool:
        return super().carries(field) and not (field == "init_lora_weights" and self.init_lora_weights == "mica")

    @property
    @override
    def data_init(self) -> str | None:
        return {
            "eva": "adapterkit.methods.lora.eva:start_from_data",
            "corda": "adapterkit.methods.lora.corda:start_from_data",
            "lora_ga": "adapterkit.methods.lora.loraga:start_from_data",
        }.get(str(self.init_lora_weights))

    @property
    @override
    def derived_inputs(self) -> str | None:
        return "adapterkit.methods.lora.activated:spans" if self.alora_invocation_tokens else None

    @model_validator(mode="after")
    def _activation_goes_with_the_rest(self) -> Self:
        if self.alora_invocation_tokens is None:
            return self
        for other in ("use_dora", "use_qalora"):
            if getattr(self, other):
                raise ValueError(f"alora_invocation_tokens and {other} exclude each other")
        if self.task_type not in (None, "CAUSAL_LM"):
            raise ValueError(
                f"alora_invocation_tokens is for CAUSAL_LM, where later tokens see no earlier change, not "
                f"{self.task_type}"
            )
        return self

    @model_validator(mode="after")
    def _groups_go_with_the_rest(self) -> Self:
        if not self.use_qalora:
            return self
        for other in ("use_dora", "lora_bias"):
            if getattr(self, other):
                raise ValueError(f"use_qalora and {other} exclude each other")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise ValueError(f"use_qalora starts from true, false or gaussian, not {self.init_lora_weights!r}")
        return self

    @model_validator(mode="after")
    def _variants_exclude_each_other(self) -> Self:
        asked = {
            "use_bdlora": self.use_bdlora is not None,
            "init_lora_weights='mica'": self.init_lora_weights == "mica",
        }
        for variant in (name for name, is_asked in asked.items() if is_asked):
            for other in ("use_dora", "use_qalora", "lora_bias", "alora_invocation_tokens"):
                if getattr(self, other):
                    raise ValueError(f"{variant} and {other} exclude each other")
        if asked["use_bdlora"] and self.init_lora_weights not in (True, False, "gaussian"):
            raise ValueError(f"use_bdlora starts from true, false or gaussian, not {self.init_lora_weights!r}")
        return self

    @model_validator(mode="after")
    def _layers_are_of_modules(self) -> Self:
        narrows = self.layers_to_transform is not None and self.target_parameters and not self.target_modules
        if narrows and not self.inference_mode:
            raise ValueError("layers_to_transform would do nothing: it narrows target_modules, not target_parameters")
        return self

    @model_validator(mode="after")
    def _lora_bias_has_no_dora(self) -> Self:
        if self.lora_bias and self.use_dora:
            raise ValueError("lora_bias and use_dora exclude each other")
        return self
