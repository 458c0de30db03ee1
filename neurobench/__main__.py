"""The command ``neurobench``, which ``python -m neurobench`` is too."""

import atexit
import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        from neurobench.cli import app

        app()
    except KeyboardInterrupt:
        # No command has begun, and there is nothing to say of it: one that has says what is kept.
        raise SystemExit(130) from None
    finally:
        # Ctrl-C while code in a string ran, as for a dataclass: `python -m` would die of it at the end, though it was
        # caught and answered by an exit code. Python forgets it when such code runs again.
        exec("")  # noqa: S102


def program() -> None:
    """Run the command line as all that this process does.

    At the end torch's libraries would be tidied up one by one, which reads a hundred megabytes of them that were never
    used, and takes a third of a second: the system takes back all of it anyway.
    """
    codes: list[int] = []
    # Whoever else has something to do at the end does it before: last come first. A tool that began before this process
    # did anything, as one that measures coverage, keeps its turn.
    if not getattr(atexit, "_ncallbacks", int)():
        atexit.register(_end, codes)
    try:
        main()
        codes.append(0)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            codes.append(stop.code or 0)
        raise


def _end(codes: list[int]) -> None:
    """End the process by the code that is known; without one Python has more to say."""
    if not codes:
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (AttributeError, OSError, ValueError):
        # None, closed, or nobody reads: Python knows what to do.
        return
    os._exit(codes[0] & 0xFF)


if __name__ == "__main__":
    program()
