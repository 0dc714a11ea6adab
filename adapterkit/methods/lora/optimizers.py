r"""Optimizers made for LoRA's two factors.

LoRA+ (Hayou et al., 2024), https://arxiv.org/abs/2402.12354: B learns faster than A, ``lr_B = ratio * lr_A``.

LoRA-FA (Zhang et al., 2023), https://arxiv.org/abs/2308.03303: A stays as it was drawn, and B follows the gradient

.. math:: g_B' = s^{-2} \, g_B \, (A A^T)^{-1}

which makes the change of ``s B A`` the nearest one to the whole weight's gradient. It keeps no optimizer state for A,
and ``A x`` in place of ``x`` for backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names
from typing_extensions import override

from adapterkit.errors import CapabilityError, ConfigError
from adapterkit.given import check_number, misfit
from adapterkit.injection.lookup import check_is_adapted
from adapterkit.methods.lora.adapter import LoraAdapter
from adapterkit.nn.module import check_is_module

_DAMPING = 1e-8  # keeps A A^T invertible


def create_loraplus_optimizer(
    model: nn.Module, optimizer_cls: type[Optimizer], *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> Optimizer:
    """An optimizer in which LoRA's second factors, and all vectors, learn faster.

    Args:
        model: the adapted model.
        optimizer_cls: class of the optimizer.
        lr: learning rate of A, and of matrices beside the adapters.
        loraplus_lr_ratio: learning rate of B as a multiple of ``lr``.
        kwargs: ``loraplus_lr_embedding``: the rate on embeddings, 1e-6 if not given; ``loraplus_weight_decay``: weight
            decay of all but biases and norms, 0 if not given; and what else ``optimizer_cls`` takes.
    """
    check_is_module(model)
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        raise misfit("optimizer_cls", optimizer_cls, "an optimizer's class")
    check_number(loraplus_lr_ratio, "loraplus_lr_ratio")
    decay = kwargs.pop("loraplus_weight_decay", 0.0)
    embedding_lr = kwargs.pop("loraplus_lr_embedding", 1e-6)
    decayed = {name for name in get_parameter_names(model, ALL_LAYERNORM_LAYERS) if "bias" not in name}
    groups: dict[str, dict[str, Any]] = {
        "A": {"lr": lr, "weight_decay": decay, "params": []},
        "embedding": {"lr": embedding_lr, "weight_decay": decay, "params": []},
        "B": {"lr": lr * loraplus_lr_ratio, "weight_decay": decay, "params": []},
        "B without decay": {"lr": lr * loraplus_lr_ratio, "weight_decay": 0.0, "params": []},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group(name, parameter, decayed)]["params"].append(parameter)
    make: Any = optimizer_cls
    optimizer: Optimizer = make(list(groups.values()), lr=lr, **kwargs)
    if optimizer_cls.__name__ in ("Adam8bit", "AdamW8bit", "PagedAdam8bit", "PagedAdamW8bit"):
        _keep_embeddings_whole(model)
    return optimizer


def _group(name: str, parameter: Tensor, decayed: set[str]) -> str:
    if "lora_embedding_" in name:
        return "embedding"
    if "lora_B" in name or parameter.ndim == 1:
        return "B" if name in decayed else "B without decay"
    return "A"


def _keep_embeddings_whole(model: nn.Module) -> None:
    """Optimizers of 8 bits keep 32 for embeddings, which receive rare and large gradients."""
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


@final
class LoraFAOptimizer(Optimizer):
    """AdamW that takes LoRA's second factors along the gradient that LoRA-FA says.

    Args:
        params: parameters, or groups of them, that receive gradients.
        pairs: B -> (A, s): the frozen first factor of a second one, and the scale of their product.
        lr: learning rate.
        betas: coefficients of the running averages of the gradient and its square.
        eps: added to the root of the latter.
        weight_decay: decoupled weight decay.
        correct_bias: correct the averages for starting at zero.
    """

    def __init__(
        self,
        params: Any,
        pairs: Mapping[nn.Parameter, tuple[Tensor, float]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)
        self.pairs = dict(pairs)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, self._gradient(parameter), group)
        return loss

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        gradient: Any = parameter.grad
        if parameter not in self.pairs:
            return gradient  # type: ignore[no-any-return]
        a, scaling = self.pairs[parameter]
        a = a.flatten(1).float()
        gram = a @ a.T + _DAMPING * torch.eye(len(a), device=a.device)
        projected = gradient.flatten(1).float() @ torch.linalg.pinv(gram) / scaling**2
        shaped: Tensor = projected.to(gradient.dtype).reshape(gradient.shape)
        return shaped

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = group["lr"]
        if group["correct_bias"]:
            size *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


def create_lorafa_optimizer(
    model: Any,
    r: int,
    lora_alpha: float,
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
    **settings: Any,
) -> LoraFAOptimizer:
    """Freeze LoRA's first factors and make the optimizer for the second.

    Embeddings, whose first factor starts at zero, are trained whole by AdamW; so is what is beside the adapters.

    Args:
        model: the adapted model; its active adapters are trained.
        r: the rank, as the adapters' configs have it.
        lora_alpha: as the adapters' configs have it.
        lr: learning rate.
        weight_decay: decoupled weight decay.
        use_rslora: as the adapters' configs have it; None does not say.
        settings: ``betas``, ``eps`` and ``correct_bias`` of `LoraFAOptimizer`.

    Raises:
        ConfigError: a config has another rank, alpha or scale.
        CapabilityError: an adapter's change is not ``s B A``, as with DoRA.
    """
    check_is_adapted(model)
    stated = {"r": r, "lora_alpha": lora_alpha, **({} if use_rslora is None else {"use_rslora": use_rslora})}
    for name in model.active_adapters:
        for field, value in stated.items():
            own = getattr(model.peft_config[name], field, None)
            if own != value:
                raise ConfigError(f"LoRA-FA: {field}={value!r}, but adapter {name!r} has {own!r}")
    pairs = {b: (a, scaling) for adapter in _adapters(model) for a, b, scaling in [_pair(adapter)]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return LoraFAOptimizer(trained, pairs, lr=lr, weight_decay=weight_decay, **settings)


def _adapters(model: Any) -> list[LoraAdapter]:
    """The active adapters that have a first factor to freeze."""
    parts = [part for name in model.active_adapters for _, part in model.base_model.parts(name)]
    return [part for part in parts if isinstance(part, LoraAdapter) and part.layer.kind != "embedding"]


def _pair(adapter: LoraAdapter) -> tuple[Tensor, nn.Parameter, float]:
    """``A``, which is frozen from now on, ``B`` and their scale."""
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    if hasattr(adapter, "lora_magnitude_vector"):
        raise CapabilityError("LoRA-FA does not go with use_dora: the change is more than the product of two factors")
    if adapter.is_minor:
        raise CapabilityError("LoRA-FA does not go with init_lora_weights='mica', whose second factor is not trained")
    if a.shape[0] != adapter.r or b.shape[1] != adapter.r or adapter.blocks != (1, 1):
        what = type(adapter.layer.layer).__name__
        raise CapabilityError(f"LoRA-FA is not possible on a {what} with groups, blocks or experts")
    a.requires_grad_(False)
    return a, b, adapter.scaling


def loraplus(model: Any, optimizer_class: type[Optimizer], settings: dict[str, Any], trainer: Any) -> Optimizer:
    """LoRA+ as a run's ``trainer`` asks for it."""
    ratio, decay = trainer.loraplus_lr_ratio, trainer.weight_decay
    return create_loraplus_optimizer(
        model, optimizer_class, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **settings
    )


def lorafa(model: Any, optimizer_class: type[Optimizer], settings: dict[str, Any], trainer: Any) -> Optimizer:
    """LoRA-FA as a run's ``trainer`` asks for it. It is AdamW whatever ``optimizer_class`` is."""
    config = model.active_peft_config
    return create_lorafa_optimizer(
        model,
        config.r,
        config.lora_alpha,
        trainer.learning_rate,
        trainer.weight_decay,
        betas=(trainer.adam_beta1, trainer.adam_beta2),
        eps=trainer.adam_epsilon,
    )
