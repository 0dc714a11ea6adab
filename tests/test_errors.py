"""The error tree is as it is drawn, and hints are helpful."""

from __future__ import annotations

import re

import pytest

from adapterkit import errors
from adapterkit.errors import AdapterkitError, UnknownPluginError, did_you_mean, nearest, of_choices

_LINE = re.compile(
    r"^ *(?P<branch>[│├└─ ]*)(?P<name>\w+Error)(?: \((?P<also>\w+)\))?(?: +exit (?P<exit>\d+))?", re.MULTILINE
)


def drawn() -> list[tuple[str, str, str | None, str | None]]:
    """The drawing as (class, parent, second base, exit code)."""
    stack: list[tuple[int, str]] = []
    found = []
    for line in _LINE.finditer(errors.__doc__ or ""):
        depth = len(line["branch"])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        found.append((line["name"], stack[-1][1] if stack else "Exception", line["also"], line["exit"]))
        stack.append((depth, line["name"]))
    return found


def classes() -> set[str]:
    return {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, AdapterkitError)}


def test_the_drawing_has_every_class():
    names = [name for name, *_ in drawn()]
    assert len(names) == len(set(names))
    assert set(names) == classes()


@pytest.mark.parametrize(("name", "parent", "also", "code"), drawn())
def test_the_drawing_is_true(name, parent, also, code):
    error = getattr(errors, name)
    assert [base.__name__ for base in error.__bases__] == [parent, *([also] if also else [])]
    if code:
        assert error.exit_code == int(code)


def test_an_unknown_plugin_reads_as_a_sentence():
    error = UnknownPluginError("no method named 'x'\n  Installed: lora")
    assert str(error) == "no method named 'x'\n  Installed: lora"
    assert isinstance(error, KeyError)
    assert error.exit_code == errors.EXIT_CONFIG


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("lorra", ["lora", "loha"], "lora"),
        ("LoraAlpha", ["lora_alpha", "r"], "lora_alpha"),
        ("proj", ["c_proj", "x"], "c_proj"),
        ("zzz", ["lora", "loha"], None),
        ("x", [], None),
    ],
)
def test_nearest(word, choices, expected):
    assert nearest(word, choices) == expected
    assert did_you_mean(word, choices) == (f"; did you mean {expected!r}?" if expected else "")


@pytest.mark.parametrize(
    ("word", "choices", "told"),
    [("lroa", ["lora", "ia3"], "; did you mean 'lora'? Choices: lora, ia3"), ("zz", ["lora"], ". Choices: lora")],
)
def test_choices_follow_a_sentence_that_ends(word, choices, told):
    assert of_choices(word, iter(choices)) == told
