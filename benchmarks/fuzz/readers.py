"""Everything that reads what comes from outside, by name."""

from __future__ import annotations

import functools

from benchmarks.fuzz import pages, recordings, results, tables, tensors
from benchmarks.fuzz.reader import Reader


@functools.cache
def readers() -> dict[str, Reader]:
    """Return every reader by name."""
    return tables.readers() | results.readers() | recordings.readers() | tensors.readers() | pages.readers()
