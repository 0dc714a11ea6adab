"""What is typed is what arrives, or it is refused: no value changes its meaning on the way."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterkit.hydra.arguments import parse
from adapterkit.hydra.diagnosis import composer_for, diagnose
from adapterkit.hydra.nodes import plain
from adapterkit.hydra.validation import validate
from adapterkit.registry import methods
from tests.commandline import LORA


def composed(*overrides: str):
    arguments = parse([*LORA, *overrides])
    assert not arguments.problems
    return validate(composer_for(arguments).compose(arguments.overrides))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("method.r=16", "method.r", 16),
        ("+method.r=16", "method.r", 16),
        ("++method.r=16", "method.r", 16),
        ("trainer.learning_rate=1e-4", "trainer.learning_rate", 1e-4),
        ("trainer.learning_rate=1", "trainer.learning_rate", 1.0),
        ("method.target_modules=.*q_proj", "method.target_modules", ".*q_proj"),
        ("method.target_modules=q_proj|v_proj", "method.target_modules", "q_proj|v_proj"),
        ("method.target_modules='(q|v)_proj'", "method.target_modules", "(q|v)_proj"),
        ("method.target_modules=[q,v]", "method.target_modules", ["q", "v"]),
        (
            "method.rank_pattern={.*q_proj:4,model.layers.0:8}",
            "method.rank_pattern",
            {".*q_proj": 4, "model.layers.0": 8},
        ),
        ("method.rank_pattern.q=4", "method.rank_pattern", {"q": 4}),
        ("model.tokenizer='12e5678'", "model.tokenizer", "12e5678"),
        ("model.revision=null", "model.revision", None),
        ("method.init_lora_weights=pissa", "method.init_lora_weights", "pissa"),
        ("method.init_lora_weights=false", "method.init_lora_weights", False),
        ("model=tiny_llama", "model.name_or_path", "builtin:llama"),
        ("~method.r", "method.r", 8),
    ],
)
def test_a_value_arrives_as_it_was_meant(override, path, value):
    found = composed(override)
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


@given(
    rank=st.integers(1, 10**6),
    rate=st.floats(1e-12, 1e6),
    name=st.from_regex(r"[a-z][a-z0-9_./-]{0,20}", fullmatch=True),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_arrives(rank, rate, name):
    if name in ("null", "true", "false", "nan", "inf"):
        return
    run = composed(f"method.r={rank}", f"trainer.learning_rate={rate!r}", f"model.tokenizer={name}")
    assert (run.method.r, run.trainer.learning_rate, run.model.tokenizer) == (rank, rate, name)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_without_a_learning_rate_a_run_takes_that_of_the_method(method):
    chosen = [f"+method={method}", "task=seq_cls"]
    assert composed_experiment(*chosen).trainer.learning_rate == methods[method].learning_rate
    assert composed_experiment(*chosen, "trainer.learning_rate=0.5").trainer.learning_rate == 0.5
    assert methods["lora"].learning_rate != methods["ia3"].learning_rate


def test_the_command_line_wins_over_an_experiment_and_that_over_presets():
    run = composed_experiment("experiment=lora_sentiment", "method.r=3")
    assert (run.method.r, run.trainer.learning_rate, run.data.name) == (3, 5e-4, "sst2")


def composed_experiment(*overrides: str):
    arguments = parse(overrides)
    return validate(composer_for(arguments).compose(arguments.overrides))


@pytest.mark.parametrize("value", ["${now:%Y}", "${hydra:job.name}", "${hydra.job.name}", "${trainer.seed}"])
def test_a_value_may_refer_to_all_that_hydra_resolves_and_to_nothing_else(value):
    problems = diagnose(parse([*LORA, f"model.tokenizer={value}"]))
    assert [problem.place for problem in problems] == (["model.tokenizer"] if value == "${trainer.seed}" else [])


@pytest.mark.parametrize("overrides", [LORA, ["+method=rslora", "task=causal_lm", "trainer=fast", "data.x.y=[1,2]"]])
def test_our_part_of_a_config_is_the_same_with_hydras_own_and_without(overrides):
    arguments = parse(overrides)
    composer = composer_for(arguments)
    assert plain(composer.compose_ours(arguments.overrides)) == plain(composer.compose(arguments.overrides))
