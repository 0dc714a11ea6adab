"""Hydra's own entry point, wrapped: our argument handling before it, our error screens and exit codes after it."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adapterkit.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TRIALS, ConfigError
from adapterkit.files import remove_empty, remove_unused
from adapterkit.hydra.arguments import Arguments, completion_line, parse
from adapterkit.hydra.diagnosis import compact, composer_for, diagnose
from adapterkit.hydra.places import conf_dir
from adapterkit.hydra.preflight import Preflight, new_folders, started_sweep
from adapterkit.hydra.private import allowing, not_yaml, version_options
from adapterkit.hydra.problems import ConfigProblems, Problem
from adapterkit.hydra.source import install
from adapterkit.hydra.sweeps import settled
from adapterkit.hydra.task import RunFailed, describe, execute, exit_code

FULL_ERROR = "HYDRA_FULL_ERROR"
PREFLIGHT = f"{Preflight.__module__}.{Preflight.__qualname__}"


def run(argv: Sequence[str]) -> int:
    """Compose and run what ``argv`` says; the exit code. With ``HYDRA_FULL_ERROR=1`` errors are raised instead."""
    wants_trace = os.environ.get(FULL_ERROR) == "1"
    started_sweep.set(None)
    try:
        code = _run(argv)
    except KeyboardInterrupt:
        sys.stderr.write("adapterkit: interrupted\n")
        code = EXIT_INTERRUPTED
    except Exception as error:
        if wants_trace:
            raise
        sys.stderr.write(f"adapterkit: {describe(error)}\n")
        code = exit_code(error)
    failed = _report_sweep(argv)
    return code or failed


def _run(argv: Sequence[str]) -> int:
    install()
    arguments = _completion(argv) if {"-sc", "--shell-completion"} & set(argv) else parse(argv)
    if arguments.problems or arguments.is_plain_run:
        problems = diagnose(arguments)  # sooner than Hydra could tell, which composes twice before it calls anyone
        if problems:
            raise ConfigProblems(problems)
    gc.enable()
    try:
        return _call_hydra(_checked_first(settled(arguments, composer_for(arguments))))
    except RunFailed as failed:
        _tidy(new_folders.get(), failed.error)
        raise failed.error from None
    except (CompactHydraException, OmegaConfBaseException, ConfigError) as error:
        problems = diagnose(arguments) or [Problem("", compact(error))]
        raise ConfigProblems(problems) from error
    except YAMLError as error:
        raise ConfigError(not_yaml(error)) from error
    except (OSError, ValueError) as error:  # a run's own are in RunFailed
        sweep = started_sweep.get()
        if sweep is not None and sweep.directory.is_dir():
            raise
        remove_empty(new_folders.get())
        key = "hydra.run.dir" if sweep is None else "hydra.sweep.dir"
        cannot = f"{key}: the directory cannot be made: " if isinstance(error, OSError) else ""
        raise ConfigError(f"{cannot}{error}") from error


def _checked_first(arguments: Arguments) -> Arguments:
    """The same with `Preflight` spelled out, where it is another primary config than ours, which names it."""
    if not (arguments.runs and arguments.own_primary):
        return arguments
    check = f"++hydra.callbacks.adapterkit_preflight._target_={PREFLIGHT}"
    return replace(arguments, overrides=[*arguments.overrides, check])


def _tidy(folders: Sequence[Path], error: Exception) -> None:
    """Remove what Hydra made for a run that wrote nothing; of a run that could not be begun, its log, too."""
    if isinstance(error, ConfigError) and folders:
        remove_unused(folders[0])
    remove_empty(folders)


def _completion(argv: Sequence[str]) -> Arguments:
    """A query of the shell, passed on as it is."""
    return Arguments(flags=[a for a in argv if a.startswith("-")], overrides=[a for a in argv if a[:1] != "-"])


def _call_hydra(arguments: Arguments) -> int:
    app = hydra.main(**version_options(), config_path=str(conf_dir()), config_name="config")(execute)
    with _process_state([sys.argv[0], *arguments.argv]), allowing(PREFLIGHT):
        try:
            app()
        except RunFailed:
            raise
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else EXIT_OK
    return EXIT_OK


@contextmanager
def _process_state(argv: list[str]) -> Iterator[None]:
    """Set what Hydra reads from the process, and put back what it changes: arguments, environment, logging.

    `FULL_ERROR` makes Hydra raise errors instead of printing them itself; ``COMP_LINE`` is what the shell wants
    completed, in a form that can be composed.
    """
    old_argv, old_environment = sys.argv, dict(os.environ)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = argv
    os.environ |= {FULL_ERROR: "1", "COMP_LINE": completion_line(old_environment.get("COMP_LINE", ""))}
    try:
        yield
    finally:
        sys.argv = old_argv
        for name in (FULL_ERROR, "COMP_LINE"):
            os.environ.pop(name, None)
            os.environ |= {name: old_environment[name]} if name in old_environment else {}
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _report_sweep(argv: Sequence[str]) -> int:
    """Print and write the report of the sweep that was started, if any; whether any trial failed, as an exit code."""
    sweep = started_sweep.get()
    if sweep is None or not sweep.directory.is_dir():
        return EXIT_OK
    from adapterkit.sweep.report import report

    flags = parse(argv).sources
    return EXIT_TRIALS if report(sweep.directory, metric=sweep.metric, flags=flags, sweep=sweep.id) else EXIT_OK
