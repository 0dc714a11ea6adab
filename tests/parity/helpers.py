"""One way to compare a method with PEFT's: same tensors, same numbers, files that go both ways."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adapterkit
from adapterkit.checkpoint.state import get_peft_model_state_dict

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

Randomizer = Callable[[nn.Module], None]


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns where it is used as documented, too; here only its numbers count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def add_noise(model: nn.Module, scale: float = 0.2) -> None:
    """Move every trainable parameter away from its start, so that nothing is compared at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter += scale * noise.to(parameter.device)


def run(model: nn.Module, inputs: Any) -> Tensor:
    """The first tensor of a model's output; ``inputs`` is a tensor, a tuple, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def gradients(model: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> dict[str, Tensor]:
    """The gradient of a fixed function of the output with respect to each tensor of ``state``, by its key.

    A tensor without a gradient is left out; ``state`` must share memory with the model's parameters.
    """
    model.zero_grad()
    output = run(model, inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape).cos()
    (output * weights).sum().backward()
    by_memory = {p.data_ptr(): p.grad for p in model.parameters() if p.grad is not None}
    return {key: by_memory[t.data_ptr()] for key, t in state.items() if t.data_ptr() in by_memory}


def peft_model(config: Any, model: nn.Module, randomize: Randomizer = add_noise) -> Any:
    """PEFT's model with every trainable tensor moved off its start, in evaluation mode."""
    with quiet():
        theirs = peft.get_peft_model(model, config)
    randomize(theirs)
    return theirs.eval()


def state_of(theirs: Any) -> dict[str, Tensor]:
    """PEFT's tensors by file key, without the second copy it makes of some biases under a wrapper's own names."""
    state = peft.get_peft_model_state_dict(theirs)
    return {key: t for key, t in state.items() if ".modules_to_save." not in key and ".original_module." not in key}


def assert_parity(
    config_kwargs: Mapping[str, Any],
    our_config_cls: Any,
    peft_config_cls: Any,
    model_factory: Callable[[], nn.Module],
    inputs: Any,
    *,
    ours: Mapping[str, Any] | None = None,
    merge: bool = True,
    peft_reads: bool = True,
    same_gradients: bool = True,
    randomize: Randomizer = add_noise,
    atol: float = 1e-5,
    rtol: float = 1e-4,
) -> None:
    """Assert that a config gives PEFT's tensors, outputs, gradients and merged weights, and files go both ways.

    Args:
        config_kwargs: fields for both config classes.
        our_config_cls: adapterkit's config class.
        peft_config_cls: PEFT's.
        model_factory: makes the same base model on every call.
        inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
        ours: fields for our config class only.
        merge: whether the method can be merged.
        peft_reads: whether PEFT is asked to load what we save.
        same_gradients: whether PEFT's gradients are the derivatives of its outputs, so that ours must equal them.
        randomize: moves PEFT's trainable parameters away from their start.
        atol: absolute tolerance of outputs, gradients and merged weights.
        rtol: relative tolerance of the same.
    """

    def close(actual: Any, expected: Any) -> None:
        torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)

    with tempfile.TemporaryDirectory() as directory:
        theirs = peft_model(peft_config_cls(**config_kwargs), model_factory(), randomize)
        with quiet():
            theirs.save_pretrained(Path(directory) / "theirs")
            their_state = state_of(theirs)
        mine = adapterkit.PeftModel.from_pretrained(
            model_factory(), Path(directory) / "theirs", is_trainable=True
        ).eval()
        state = get_peft_model_state_dict(mine)
        assert_same_tensors(state, their_state)
        close(run(mine, inputs), run(theirs, inputs))
        if same_gradients:
            close(gradients(mine, state, inputs), gradients(theirs, their_state, inputs))
        assert_same_start(our_config_cls(**config_kwargs, **(ours or {})), model_factory(), theirs, their_state)
        expected = run(theirs, inputs).detach()
        mine.save_pretrained(Path(directory) / "ours")
        assert_same_settings(Path(directory), {"target_modules", *getattr(our_config_cls, "subset_fields", ())})
        if peft_reads:
            with quiet():
                back = peft.PeftModel.from_pretrained(model_factory(), Path(directory) / "ours").eval()
                assert_same_tensors(state, state_of(back))
            close(run(back, inputs), expected)
        if merge:
            assert_same_merge(mine, theirs, close)


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same keys with exactly the same values."""
    assert sorted(ours) == sorted(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key].to(tensor.dtype), tensor), key


def assert_same_start(config: Any, model: nn.Module, theirs: Any, their_state: Mapping[str, Tensor]) -> None:
    """An adapter made from a config has the tensors that PEFT's has, and as many trained numbers."""
    fresh = adapterkit.get_peft_model(model, config)
    shapes = {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(fresh).items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in their_state.items()}
    assert fresh.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]


def assert_same_settings(directory: Path, names: Set[str]) -> None:
    """Every key that both files have, has one value; ours has no key that PEFT's class does not know. The fields
    ``names`` may name the same modules otherwise: that PEFT reads them so is for its outputs to show."""
    mine, theirs = (json.loads((directory / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert not mine.keys() - theirs.keys()
    for key in mine.keys() & theirs.keys() - {*names, "auto_mapping", "peft_version"}:
        assert mine[key] == theirs[key] or (not mine[key] and not theirs[key]), key


def assert_same_merge(mine: Any, theirs: Any, close: Callable[[Any, Any], None]) -> None:
    """The plain model that is left after merging has PEFT's weights."""
    with quiet():
        expected = theirs.merge_and_unload().state_dict()
    merged = mine.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    close(dict(merged), dict(expected))
