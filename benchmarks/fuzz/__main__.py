"""Give every reader damaged files, and say what came of it.

    python -m benchmarks.fuzz [--n 100000] [--seed 0] [--engine mutation] [--save] [READER …]

The only errors that may come out are neurobench's own; everything else is a bug, and so is a file that takes longer
than :data:`.engines.LIMIT_S`, or more than :data:`LIMIT_BYTES`. ``--save`` keeps what was run in
``benchmarks/results/fuzz.json``, by engine; campaigns of several seeds add up there, so that a long one can be run in
pieces. Exit code 1: something was found.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from pathlib import Path

from rich.progress import track

from benchmarks.fuzz.engines import COVERAGE, ENGINES, KEPT, fuzz, keep
from benchmarks.fuzz.readers import readers
from benchmarks.fuzz.structured import strategies

LIMIT_BYTES = 2 << 30
"""Memory that the process of a campaign may take besides what it has when it starts."""


def main() -> None:
    """Run the campaigns and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", nargs="*", choices=[*readers(), []], help="Without: all that the engine knows.")
    parser.add_argument("--n", type=int, default=100_000, help="Files for each.")
    parser.add_argument("--seed", type=int, default=0, help="Another seed is other files.")
    parser.add_argument(
        "--engine",
        choices=[*ENGINES, COVERAGE],
        default="mutation",
        help="mutation: valid files, damaged. hypothesis: made up of known fields, by "
        f"{', '.join(strategies())}. atheris: damaged as coverage guides it, where it is installed.",
    )
    parser.add_argument("--save", action="store_true", help=f"Keep what was run in {KEPT.name}.")
    options = parser.parse_args()
    logging.disable()
    has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + LIMIT_BYTES, has + LIMIT_BYTES))
    everything = strategies() if options.engine == "hypothesis" else readers()
    broken = False
    for name in track(options.reader or list(everything), description="reading", disable=not sys.stderr.isatty()):
        done = fuzz(name, options.n, options.seed, options.engine)
        told = "".join(f", {n} {kind}" for kind, n in done.errors.most_common())
        print(
            f"{name}: {done.n} files, {done.n_read} read{told}, {done.seconds:.0f} s, slowest {done.slowest_s:.2f} s, "
            f"{len(done.found)} bugs",
            flush=True,
        )
        for place, (said, content) in done.found.items():
            print(f"  {place}: {said[:200]}\n  {content[:300]!r}", flush=True)
        broken |= bool(done.found)
        if options.save and not done.found:
            keep(name, done, options.seed, options.engine)
    sys.exit(broken)


if __name__ == "__main__":
    main()
