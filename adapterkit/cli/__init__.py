"""``python -m adapterkit``: verbs are answered before Hydra is imported; everything else is a run or a sweep."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence

from adapterkit.errors import EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_OK, AdapterkitError, did_you_mean

VERBS = {
    "list": ("adapterkit.cli.listing:show_list", "methods, tasks, models, presets or plugins that are installed"),
    "show": ("adapterkit.cli.show:show", "every field of a method, task or section; or a preset's file"),
    "schema": ("adapterkit.cli.schema:schema", "JSON Schema of a run's configuration, for editors"),
    "validate": ("adapterkit.cli.validate:validate", "compose and check a run or a sweep, and start nothing"),
    "estimate": ("adapterkit.cli.estimate:estimate", "targets and exact parameter counts, without weights"),
    "eval": ("adapterkit.cli.evaluate:evaluate", "the metrics of a finished run, on a split or on other data"),
    "predict": ("adapterkit.cli.predict:predict", "what a finished run's adapter says of new rows"),
    "inspect": ("adapterkit.cli.inspect:inspect", "what a saved adapter is, without torch or its base model"),
    "diff": ("adapterkit.cli.diff:diff", "what differs between two saved adapters; exit code 4 if anything does"),
    "verify": ("adapterkit.cli.verify:verify", "whether a saved adapter is sound; exit code 4 if it is not"),
    "merge": ("adapterkit.cli.merge:merge", "an adapter and its base as one plain model, proved to compute the same"),
    "export": ("adapterkit.cli.export:export", "an adapter for vLLM, SGLang, llama.cpp, TGI or PEFT, or why not"),
    "plugin": ("adapterkit.cli.plugin:plugin", "plugin new: a whole package for a method or a task of your own"),
    "plugins": ("adapterkit.cli.listing:plugins", "state of every installed plugin; exit code 1 if any has a problem"),
}
"""Verb to the function that does it, called with the rest of the line, and what it does. In order: before a run, with a
run, with a saved adapter, and about plugins."""

USAGE = {
    "list": "list [methods|tasks|models|presets|plugins]",
    "show": "show method <name> | show task <name> | show <section> | show <group> <preset>",
    "validate": "validate +method=<name> task=<name> [key=value ...] [-m] [--config-dir DIR] [--config-path DIR] "
    "[--config-name NAME]",
    "plugins": "plugins [list]",
}
"""How the verbs are called that take no flags of their own."""

HELP: tuple[list[str], ...] = (["help"], ["--help"], ["-h"], [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code (`adapterkit.errors`).

    Args:
        argv: arguments without the program's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: not every terminal can write (IA)³
    gc.disable()  # importing and composing make next to no garbage, and the search for it takes a tenth of their time
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    finally:
        gc.enable()
    return code


def _dispatch(arguments: list[str]) -> int:
    if arguments in HELP:
        from adapterkit.cli.help import screen

        print(screen())
        return EXIT_OK
    if arguments == ["--version"]:
        from adapterkit import __version__

        print(f"adapterkit {__version__}")
        return EXIT_OK
    first = arguments[0]
    if first in VERBS:
        return _do(first, arguments[1:])
    if "=" not in first and not first.startswith(("-", "+", "~")):
        sys.stderr.write(f"adapterkit: no verb {first!r}{did_you_mean(first, VERBS)}\n  verbs: {', '.join(VERBS)}\n")
        return EXIT_CONFIG
    from adapterkit.hydra.app import run

    return run(arguments)


def _do(verb: str, arguments: list[str]) -> int:
    if verb in USAGE and {"--help", "-h"} & set(arguments):
        print(f"usage: python -m adapterkit {USAGE[verb]}\n\n{VERBS[verb][1]}")
        return EXIT_OK
    from adapterkit.registry import resolve

    try:
        return int(resolve(VERBS[verb][0])(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as leaving:  # of argparse
        return leaving.code if isinstance(leaving.code, int) else EXIT_OK
    except AdapterkitError as error:
        sys.stderr.write(f"adapterkit: {error}\n")
        return error.exit_code
