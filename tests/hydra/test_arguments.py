"""A command line, taken apart."""

from __future__ import annotations

import itertools

import pytest

from adapterkit.hydra.arguments import completion_line, forced, parse


def test_flags_may_stand_anywhere():
    words = ["+method=lora", "-m", "method.r=4,8", "--config-dir", "mine", "task=seq_cls"]
    wanted = ["method=lora", "++method.r=4,8", "task=seq_cls"]
    for start in range(len(words)):
        turned = words[start:] + words[:start]
        if turned[0] == "mine":
            continue
        arguments = parse(turned)
        assert sorted(arguments.overrides) == sorted(wanted)
        assert (arguments.multirun, arguments.values) == (True, {"config_dir": "mine"})
        assert set(arguments.flags) == {"-m", "--config-dir", "mine"}


def test_taking_apart_twice_changes_nothing():
    once = parse(
        ["+method=lora", "method.r=4", "~task.x", "hydra.verbose=true", "hydra/launcher=basic", "a@b=c", "seed=1"]
    )
    assert parse(once.overrides) == once


def test_only_flags_come_before_the_separator():
    assert parse(["a=1", "--cfg", "job", "--info"]).argv == ["--cfg", "job", "--info", "--", "a=1"]
    assert parse(["--info", "searchpath", "a=1"]).flags == ["--info", "searchpath"]
    assert parse(["--cfg=job", "-p", "method"]).values == {"cfg": "job", "package": "method"}
    assert parse(["--", "a=1"]).overrides == ["a=1"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("method.r=4", "++method.r=4"),
        ("+method.r=4", "++method.r=4"),
        ("++method.r=4", "++method.r=4"),
        ("~method.r", "~method.r"),
        ("seed=1", "seed=1"),
        ("method=lora", "method=lora"),
        ("hydra.verbose=true", "hydra.verbose=true"),
        ("model.name_or_path=a.b", "++model.name_or_path=a.b"),
    ],
)
def test_nested_values_are_forced_and_nothing_else(line, wanted):
    assert forced(line) == wanted
    assert forced(forced(line)) == wanted


def test_every_unreadable_override_is_told():
    problems = parse(["a=(", "b=)", "c=1"]).problems
    assert len(problems) == 2
    assert all("quoting twice" in problem.message for problem in problems)


@pytest.mark.parametrize("group", ["method", "task", "model", "trainer"])
def test_a_group_chosen_twice_suggests_a_sweep(group):
    told = [problem.message for problem in parse([f"{group}=a", f"+{group}=b"]).problems]
    assert told == [f"given 2 times ({group}=a, +{group}=b); keep one; to try each of them: -m {group}=a,b"]


def test_a_plain_run_is_one_that_no_file_or_flag_can_turn_into_a_sweep(tmp_path):
    plain = ["method=lora", "task=seq_cls", "method.r=4"]
    presets = [*plain, "--config-dir", str(tmp_path)]
    assert parse(plain).is_plain_run
    assert parse(presets).is_plain_run
    for more in ("-m", "--config-name=x", "experiment=x", "hydra.mode=MULTIRUN", "hydra/launcher=joblib"):
        assert not parse([*plain, more]).is_plain_run


def test_a_line_to_complete_loses_the_plus_of_our_groups_only():
    for groups in itertools.permutations(("+method=lora", "+task=seq_cls", "+mine=x")):
        line = "adapterkit " + " ".join(groups) + " +task="
        assert completion_line(line) == line.replace("+method", "method").replace("+task=s", "task=s")
