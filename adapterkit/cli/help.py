"""The help screen: names only, nothing is imported for it."""

from __future__ import annotations

import textwrap

from adapterkit import __version__
from adapterkit.cli import VERBS
from adapterkit.registry import methods, tasks


def screen() -> str:
    """What to type, what is installed, and where to read on."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {what}" for verb, (_, what) in VERBS.items())
    return f"""adapterkit {__version__}: parameter-efficient fine-tuning, configured

usage:
  python -m adapterkit +method=<name> task=<name> [key=value ...]      one run, into outputs/
  python -m adapterkit -m +method=lora,dora method.r=4,8 task=<name>   a sweep: every combination, into multirun/
  python -m adapterkit <verb> [...]

verbs:
{verbs}

{_names("methods", list(methods))}
{_names("tasks", list(tasks))}

first steps:
  python -m adapterkit +method=lora task=seq_cls                        trains a tiny built-in model on built-in data
  python -m adapterkit show method lora                                 every key, its default and its meaning
  python -m adapterkit --cfg job +method=lora task=seq_cls              the composed configuration
  python -m adapterkit --hydra-help                                     every flag of Hydra

exit codes: 0 ok, 1 fault, 2 configuration, 3 some trials of a sweep failed, 4 a check failed, 130 interrupted"""


def _names(title: str, names: list[str]) -> str:
    return textwrap.fill(f"{title}: {', '.join(names)}", 110, subsequent_indent=" " * (len(title) + 2))
