"""``python -m bench``: one table of every row; ``--quick`` on smaller models, with fewer rounds.

``--write docs/performance.md`` puts the table into that file, in the place of the one it has.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

from bench.report import machine, write
from bench.rows import Row, table, tried
from bench.suites import EXTRA, GPU, SUITES, suite
from bench.timing import Runner

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}


def main() -> int:
    """Exit status 1 if a row failed, as it does when contenders' outputs differ."""
    options = _options()
    os.environ.update(OFFLINE)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    names = options.suite.split(",") if options.suite else _default_suites(options)
    unknown = [name for name in names if name not in SUITES + EXTRA]
    if unknown:
        sys.exit(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES + EXTRA)}")
    runner = Runner(options.device, options.quick or options.smoke, options.smoke)
    rows: list[Row] = []
    for name in names:
        started = time.monotonic()
        for row in tried(f"suite {name}", lambda name=name: suite(name)(runner)):
            rows.append(row)
            print(f"{row.name}: {', '.join(filter(None, row.cells()[1:]))}", file=sys.stderr, flush=True)
            if options.write:  # after every row: an interrupted run leaves what it has
                write(Path(options.write), table(rows), machine())
        print(f"[{name}: {time.monotonic() - started:.0f} s]", file=sys.stderr, flush=True)
    print(table(rows))
    failed = [row.name for row in rows if row.failed]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller models")
    parser.add_argument("--suite", help=f"only these, by comma: {', '.join(SUITES + EXTRA)}")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the suite gpu")
    parser.add_argument("--write", metavar="FILE", help="put the table into this file, between its two marks")
    parser.add_argument("--smoke", action="store_true", help="run every line once; the numbers mean nothing")
    return parser.parse_args()


def _default_suites(options: argparse.Namespace) -> list[str]:
    return list(GPU if options.device.startswith("cuda") else SUITES)


if __name__ == "__main__":
    sys.exit(main())
