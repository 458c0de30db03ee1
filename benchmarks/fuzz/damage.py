"""Valid files, damaged: bits flipped, pieces cut, doubled, moved, and replaced by what breaks parsers.

Of JSON also the values are changed, so that what comes after the parser is reached, and sums are made right again
where there are any; of formats that say where their parts lie, half of the damage leaves everything where it is.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.fuzz.reader import Reader

TOKENS = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b",", b";", b'"', b"'", b"[", b"{", b"}", b":"),
    *(b"NaN", b"inf", b"-Infinity", b"1e999", b"-999", b"9" * 400, b"0x10", b"1_000", b"True", b"null", b"~"),
    *(b"../../etc/passwd", b"/dev/zero", b"<script>", b"!!python/object/apply:os.system", b"&a [*a]", b"\\u0000"),
    *(b"[" * 20_000, b'{"a":' * 5000, b"- " * 3000, b"0x" + b"f" * 5000, b"2001-99-99", b"!!int ''", b"!!timestamp x"),
    *(b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;"),
    *(b"C:\\Windows\\win.ini", b"\x1b[2J", b"[red]", b"=cmd|'/c calc'!A1", b"\\ud800", b"\x1f\x8b\x08", b"javascript:"),
    *(b"A" * 5000, "é٣😀".encode(), b"\x80\x81", b"CC110033", b"0010001", b"%s%n", b"#", b"---", b"- "),
]
"""What breaks parsers."""

VALUES: list[Any] = [
    *(None, True, 0, -1, 1e308, 10**30, float("nan"), float("inf"), "", "\x00", "\ud800", "x" * 5000, [], {}, [[]]),
    *([None], {"": None}, "../../etc/passwd", "/dev/zero", "<script>", "\x1b[2J", "ok", "nan", [1, "a", {}]),
    {"a": {"a": []}},
]
"""What breaks who believes a value to be what it was."""

NUMBERS = (0, 1, 255, 1 << 16, (1 << 24) - 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 0x7F800000, 0x7FC00000)
"""What breaks who believes a length, a place, a count or a real number of 32 bits."""


def changed(rng: np.random.Generator, plain: Any) -> Any:
    """Return a JSON value with one of its parts replaced, taken out or doubled."""
    places = list(_places(plain))
    if not places:
        return _odd(rng)
    at, key = places[int(rng.integers(len(places)))]
    what = rng.integers(8)
    if what == 0:
        del at[key]
    elif what == 1 and isinstance(at, list):
        at.append(copy.deepcopy(at[key]))
    elif what == 1:
        at[str(_odd(rng))] = copy.deepcopy(at[key])
    elif what == 2:
        other, name = places[int(rng.integers(len(places)))]
        at[key] = copy.deepcopy(other[name])
    else:
        at[key] = _odd(rng)
    return plain


def _odd(rng: np.random.Generator) -> Any:
    return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(plain) if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else ():
        yield plain, key
        yield from _places(plain[key])


BY_VALUE = 0.7
"""Share of JSON whose values are changed, and not its bytes."""


def with_other_values(rng: np.random.Generator, reader: Reader, sample: bytes) -> bytes | None:
    """Return a sample after one to three changes of its values, with sums that are right; None: it is no JSON."""
    if sample[:1] not in (b"{", b"["):
        return None
    try:
        plain = json.loads(sample)
    except (ValueError, RecursionError):
        return None
    for _ in range(int(rng.integers(1, 4))):
        plain = changed(rng, plain)
    return json.dumps(reader.sealed(plain)).encode()


def damaged(rng: np.random.Generator, reader: Reader) -> bytes:
    """Return one of a reader's samples after one to six changes."""
    sample = reader.samples[int(rng.integers(len(reader.samples)))]
    if rng.random() < BY_VALUE and (other := with_other_values(rng, reader, sample)) is not None:
        return other
    if reader.in_place and rng.random() < 0.5:
        return overwritten(rng, sample)
    return mutated(rng, sample, reader.samples)


def mutated(rng: np.random.Generator, sample: bytes, others: Sequence[bytes]) -> bytes:
    """Return the bytes of a sample after one to six changes."""
    data = bytearray(sample)
    for _ in range(int(rng.integers(1, 7))):
        n = len(data)
        low = int(rng.integers(n + 1))
        high = min(n, low + int(rng.geometric(0.1)))
        what = rng.integers(8)
        if what == 0 and n:
            data[low % n] ^= 1 << int(rng.integers(8))
        elif what == 1:
            del data[low:high]
        elif what == 2:
            data[low:low] = data[low:high] * int(rng.integers(1, 4))
        elif what == 3:
            data[low:high] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif what == 4:
            data[low:low] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif what == 5:
            data[low:high] = rng.bytes(high - low)
        elif what == 6 and rng.random() < 0.3:
            del data[low:]
        else:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(len(other) + 1))
            data[low:high] = other[start : start + int(rng.geometric(0.05))]
    return bytes(data[: 1 << 16])


def overwritten(rng: np.random.Generator, sample: bytes) -> bytes:
    """Return the bytes of a sample with one to four numbers in it replaced, of the same length."""
    data = bytearray(sample)
    for _ in range(int(rng.integers(1, 5))):
        at = 4 * int(rng.integers(len(data) // 4))
        what = rng.integers(4)
        if what == 0:
            data[at + int(rng.integers(4))] ^= 1 << int(rng.integers(8))
        else:
            odd = NUMBERS[int(rng.integers(len(NUMBERS)))] if what == 1 else int(rng.integers(1 << 10))
            data[at : at + 4] = struct.pack(">f", odd) if what == 2 else struct.pack(">I", odd)
    return bytes(data)
