"""Looking over a MATLAB 5 file before it is read: scipy takes its word for types and lengths, and a damaged file would
end the process without any error.

The format: MathWorks, MAT-file format (matfile_format.pdf): a header of 128 bytes, then elements of a type, a length
and that many bytes, filled up to 8; matrices and compressed elements hold elements.
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from pathlib import Path

MATRIX, COMPRESSED = 14, 15
INT8, INT32 = 1, 5

SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
"""Bytes of a value, by type of element: integers, floats and text."""

CELL, STRUCT, OBJECT, OPAQUE = 1, 2, 3, 17
"""Classes of matrices that hold matrices."""

TEXT = 4
"""Class of matrices that hold text; of one without any bytes scipy makes as many blanks as its shape says."""

MOST_BLANKS = 1 << 16
"""Characters that a text without bytes may have."""

PARTS = {TEXT: ((False,),), 5: ((False,) * 3, (False,) * 4), 16: ((True,),)}
"""What text, sparse matrices and functions may hold: whether each of their elements is a matrix."""

NUMERIC = range(6, 16)
"""Classes of matrices that hold numbers, and nothing but one or two elements of them after flags, shape and name."""

CLASSES = range(1, 18)

DEEPEST = 100

HEADER = 128
"""Bytes before the first element."""


def damage(path: Path) -> str:
    """Return what is wrong with the structure of a MATLAB 5 file, in plain words; empty if nothing is."""
    if path.stat().st_size < HEADER:
        return "has no header of a MATLAB 5 file"
    # Seen through a window, not read: only what is compressed takes memory, one variable at a time.
    with open(path, "rb") as f:
        content = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        return "has no header of a MATLAB 5 file"
    try:
        for kind, piece in _elements(content[HEADER:], order):
            if kind == COMPRESSED:
                ((kind, piece),) = _elements(memoryview(zlib.decompress(piece)), order)
            if kind != MATRIX:
                return f"holds an element of type {kind} where a matrix is expected"
            _check_matrix(piece, order, 0)
    except (ValueError, struct.error, zlib.error) as error:
        return f"is damaged ({error})"
    return ""


def _elements(content: memoryview, order: str) -> list[tuple[int, memoryview]]:
    """Return the type and the bytes of every element, which are not copied.

    Raises
    ------
    ValueError
        If one has an unknown type, or goes over the end.
    """
    found, at = [], 0
    while at < len(content):
        (first,) = struct.unpack_from(f"{order}I", content, at)
        if first >> 16:
            # Up to four bytes lie in the tag itself.
            kind, length, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
            if length > 4:
                raise ValueError(f"{length} bytes in a tag of 4")
        else:
            kind, (length,) = first, struct.unpack_from(f"{order}I", content, at + 4)
            start = at + 8
            end = start + (length if kind == COMPRESSED else -(-length // 8) * 8)
        if kind not in SIZES and kind not in (MATRIX, COMPRESSED):
            raise ValueError(f"an element of type {kind}")
        if start + length > len(content):
            raise ValueError("an element goes over the end")
        found.append((kind, content[start : start + length]))
        at = end
    return found


def _check_matrix(content: memoryview, order: str, depth: int) -> None:
    """Raise ValueError if a matrix is none, or says that it holds more or less than it does."""
    if not content:
        return  # An empty cell.
    if depth > DEEPEST:
        raise ValueError(f"matrices in each other more than {DEEPEST} deep")
    elements = _elements(content, order)
    if len(elements) < 3:
        raise ValueError("a matrix without flags, shape or name")
    (flags, flag_bytes), (shape, shape_bytes), (name, _) = elements[:3]
    if flags == 6 and len(flag_bytes) == 8 and struct.unpack(f"{order}I", flag_bytes[:4])[0] & 0xFF == OPAQUE:
        # An object of MATLAB's own classes has no shape: three names, and a matrix.
        if [t for t, _ in elements[1:]] != [INT8, INT8, INT8, MATRIX]:
            raise ValueError("an object that is no three names and a matrix")
        _check_matrix(elements[4][1], order, depth + 1)
        return
    if flags != 6 or len(flag_bytes) != 8 or shape != 5 or len(shape_bytes) % 4 or name not in (1, 16):
        raise ValueError("a matrix without flags, shape or name")
    kind = struct.unpack(f"{order}I", flag_bytes[:4])[0] & 0xFF
    dims = struct.unpack(f"{order}{len(shape_bytes) // 4}i", shape_bytes)
    if kind not in CLASSES or not 2 <= len(dims) <= 32 or min(dims) < 0:
        raise ValueError(f"a matrix of class {kind} and shape {dims}")
    rest = elements[3:]
    if any(t == COMPRESSED for t, _ in rest):
        raise ValueError("a compressed element inside a matrix")
    if kind in NUMERIC:
        wanted = math.prod(dims)
        if not 1 <= len(rest) <= 2 or any(t not in SIZES or len(b) != wanted * SIZES[t] for t, b in rest):
            raise ValueError(f"a matrix of shape {dims} that does not hold {wanted} numbers")
    if kind in PARTS and tuple(t == MATRIX for t, _ in rest) not in PARTS[kind]:
        raise ValueError(f"a matrix of class {kind} of {len(rest)} parts")
    if kind == TEXT and math.prod(dims) > max(len(rest[0][1]), MOST_BLANKS):
        raise ValueError(f"a text of shape {dims} of {len(rest[0][1])} bytes")
    if kind in (CELL, STRUCT, OBJECT):
        wanted = math.prod(dims)
        if kind != CELL:
            # An object names its class first.
            wanted *= _n_fields(rest := rest[kind == OBJECT :], order)
            rest = rest[2:]
        if len(rest) != wanted or any(t != MATRIX for t, _ in rest):
            raise ValueError(f"a matrix of shape {dims} that does not hold {wanted} matrices")
    for inner, piece in rest:
        if inner == MATRIX:
            _check_matrix(piece, order, depth + 1)


def _n_fields(rest: list[tuple[int, memoryview]], order: str) -> int:
    """Return how many fields a structure has, by the length that all their names have and by the names."""
    if len(rest) < 2 or rest[0][0] != INT32 or len(rest[0][1]) != 4 or rest[1][0] != INT8:
        raise ValueError("a structure without names of fields")
    (length,) = struct.unpack(f"{order}i", rest[0][1])
    if length < 1 or len(rest[1][1]) % length:
        raise ValueError(f"names of fields of {length} bytes in {len(rest[1][1])}")
    return len(rest[1][1]) // length
